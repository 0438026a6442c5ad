"""Memory of a rank, counted tensor by tensor from the shapes of its models.

Nothing here is fitted to measurements: every number is the size of a tensor that exists while a layer of the Llama
family (Llama, Qwen, Mistral) is run by transformers and PyTorch. What is left out is small (token ids, masks of the
loss, the allocator's rounding) or outside the model (libraries, communication buffers of NCCL).

A training step has four moments that can be its peak, see :func:`_peak`:

1. the backward pass begins: all activations are kept, and the logits are recomputed chunk by chunk;
2. the last block is about to be differentiated: all activations and its temporary tensors;
3. the backward pass ends: all gradients, with the embedding's last;
4. a role computes without gradients: the temporary tensors of one block, and the logits of one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rl_core.contracts.model import AdapterSpec
from rl_core.contracts.rating import JobRole, MemoryEstimate, ModelShape
from rl_torch.estimates import FP32, adapter_parameters, norms_per_token, projection_bytes


@dataclass(frozen=True)
class MemorySettings:
    """The settings that memory depends on.

    Attributes:
        shards: ranks that share parameters (data- and context-parallel ones).
        tp: ranks that split every matrix.
        sequence: tensor-parallel ranks split all other activations, too.
        cp: ranks that split every sequence.
        compute_bytes: of a number in the forward and backward pass: 4, or 2 for bf16 and fp16.
        recompute: what the backward pass computes again.
        cpu_offload: parameters, gradients and optimizer are in host memory, not on the device.
        tokens: positions of a full micro-batch, padding included.
        row_tokens: width of the rows that several sequences share under a dense mask; 0 without such a mask.
        chunk_tokens: tokens whose logits exist at once; None for the default.
        several: an optimizer step has more than one micro-batch, so gradients exist during the forward pass.
        watch_entropy: the loss looks at the entropy as well.
    """

    shards: int = 1
    tp: int = 1
    sequence: bool = False
    cp: int = 1
    compute_bytes: int = FP32
    recompute: Literal["none", "selective", "full"] = "none"
    cpu_offload: bool = False
    tokens: int = 16384
    row_tokens: int = 0
    chunk_tokens: int | None = None
    several: bool = True
    watch_entropy: bool = False

    @property
    def gathers(self) -> bool:
        """Whether FSDP makes copies of parameters: to gather them, to cast them, or to bring them to the device."""
        return self.shards > 1 or self.compute_bytes != FP32 or self.cpu_offload

    @property
    def own_tokens(self) -> int:
        """Positions of a micro-batch on this rank."""
        return -(-self.tokens // self.cp)


def estimate_memory(
    roles: Sequence[JobRole], settings: MemorySettings, *, adapter: AdapterSpec | None = None
) -> MemoryEstimate:
    """Bytes on one rank for all ``roles``, whose shapes must be known.

    The groups are counted at their own largest moment, ``peak`` at the step's.
    """
    parts = [_role_memory(role, settings, adapter) for role in roles]
    stored = sum(p.stored for p in parts)
    optimizer = sum(p.optimizer for p in parts)
    lasting = 0 if settings.cpu_offload else stored + optimizer
    return MemoryEstimate(
        parameters=(0 if settings.cpu_offload else stored) + max(p.gathered for p in parts),
        gradients=max(p.gradients + p.gradient_buffers for p in parts),
        optimizer=0 if settings.cpu_offload else optimizer,
        activations=max(p.kept + p.block_temporaries for p in parts),
        logits=max(p.logits for p in parts),
        peak=lasting + max(_peak(p, several=settings.several) for p in parts),
    )


@dataclass(frozen=True)
class _RoleMemory:
    """Bytes of one role on one rank.

    ``embedding_gradient`` is one gradient of the token embedding, whole, and ``pending`` the one that the output
    projection leaves waiting for it where both share their weights.
    """

    stored: int
    optimizer: int
    gathered: int
    gradients: int
    gradient_buffers: int
    kept: int
    block_temporaries: int
    logits: int
    embedding_gradient: int
    pending: int
    trainable: bool


def _peak(role: _RoleMemory, *, several: bool) -> int:
    """The most of what comes and goes while ``role`` works."""
    if not role.trainable:
        return role.gathered + role.block_temporaries + role.logits
    before = role.gradients if several else 0
    logits = before + role.kept + role.logits
    block = before + role.kept + role.pending + role.block_temporaries
    # The gradient of the embedding is computed while an earlier one exists already.
    end = role.gradients + role.gradient_buffers + role.pending + (role.embedding_gradient if several else 0)
    # What is as wide as the vocabulary is gone before a block has a gradient.
    return role.gathered + max(logits, block + role.gradient_buffers, end)


def _role_memory(part: JobRole, settings: MemorySettings, adapter: AdapterSpec | None) -> _RoleMemory:
    shape, role = part.shape, part.role
    if shape is None:
        raise ValueError(f"the shape of role {role.name!r} is unknown")
    count = shape.parameters(role.head)
    adapted = adapter_parameters(shape, adapter) if adapter is not None and role.trainable else 0
    trained = (adapted or count.total) if role.trainable else 0
    ranks = settings.shards * settings.tp
    # AdaLoRA ranks its triplets against each other, so every rank keeps all of them.
    trained_ranks = 1 if adapter is not None and adapter.kind == "adalora" else ranks
    # Weights that are trained stay float32; frozen ones are stored as they are computed with.
    frozen_bytes = (count.total - (0 if adapted else trained)) * settings.compute_bytes
    stored = 0 if role.base_of else frozen_bytes // ranks + trained * FP32 // trained_ranks
    full_embedding = shape.vocab_size * shape.hidden_size // settings.tp
    trains_embedding = role.trainable and not adapted
    tied = shape.tie_embeddings and role.head == "lm"
    wide = full_embedding * FP32 if trains_embedding else 0
    return _RoleMemory(
        stored=stored,
        optimizer=2 * trained * FP32 // trained_ranks,
        gathered=_gathered(count.layer, count.total - count.layer * count.layers, settings),
        gradients=0 if settings.cpu_offload else trained * FP32 // trained_ranks,
        gradient_buffers=_gradient_buffers(0 if adapted else count.layer, settings) if role.trainable else 0,
        kept=_kept(shape, settings, adapter if adapted else None) if role.trainable else 0,
        block_temporaries=_block_temporaries(shape, settings, trainable=role.trainable),
        logits=_logits(shape, settings, trainable=role.trainable, weight_gradient=wide) if role.head == "lm" else 0,
        embedding_gradient=wide,
        pending=wide if tied else 0,
        trainable=role.trainable,
    )


def kept_per_token(shape: ModelShape, settings: MemorySettings, *, weights_trained: bool = True) -> float:
    """Bytes of one token that one decoder block keeps for its backward pass.

    Besides the norms, attention keeps queries, keys, values and its result. The gated feed-forward part
    keeps both products, the activation function's result, and what the last matrix multiplies.
    """
    small, tp = settings.compute_bytes, settings.tp
    ffn = shape.ffn
    if shape.experts:
        ffn = shape.ffn * max(1, shape.experts_per_token) + shape.shared_ffn
    norms = norms_per_token(shape, small, weights_trained=weights_trained)
    # Behind a dense mask every query head has a copy of its keys and values.
    keys = shape.query_width if settings.row_tokens else shape.key_width
    attention = (2 * shape.query_width + 2 * keys) * small + shape.heads * FP32
    attention += settings.row_tokens * small * tp  # each block's copy of the mask as numbers; not split
    if shape.qk_norm:
        attention += (shape.query_width + shape.key_width) * (FP32 + small) + (shape.heads + shape.kv_heads) * FP32
    feed_forward = (4 if shape.gated else 3) * ffn * small
    between = norms / tp if settings.sequence else norms
    if settings.recompute == "selective":
        return between / 3 + _selected_per_token(shape, small) / tp
    return between + (attention + feed_forward) / tp


def _selected_per_token(shape: ModelShape, small: int) -> float:
    """What stays where only matrix products and attention are kept: their results."""
    products = shape.query_width + 2 * shape.key_width + shape.hidden_size
    products += (2 if shape.gated else 1) * shape.ffn * max(1, shape.experts_per_token) + shape.hidden_size
    return (products + shape.query_width) * small


def _kept(shape: ModelShape, settings: MemorySettings, adapter: AdapterSpec | None) -> int:
    """Activations when the backward pass begins: those of all blocks, of the last norm, and the scored tokens'."""
    small = settings.compute_bytes
    ends = shape.hidden_size * (FP32 + small + 2 * small)
    if settings.recompute == "full":
        # Each block's input, and all of the block that is being computed again.
        per_token: float = shape.layers * shape.hidden_size * small
    else:
        per_token = shape.layers * kept_per_token(shape, settings, weights_trained=adapter is None)
    return int(settings.own_tokens * (per_token + ends))


def _block_temporaries(shape: ModelShape, settings: MemorySettings, *, trainable: bool) -> int:
    """Tensors that exist only while a block is worked on.

    Backward: the gradients of the block's output, of the product in the feed-forward part and of its two factors;
    with recomputation also what the block keeps. Forward: the residual stream, and the feed-forward part's tensors.
    """
    small, tp = settings.compute_bytes, settings.tp
    ffn = shape.ffn * max(1, shape.experts_per_token)
    per_token = 2 * shape.hidden_size * small + 3 * ffn * small / tp
    if trainable and settings.recompute != "none":
        whole = MemorySettings(tp=tp, sequence=settings.sequence, compute_bytes=small, row_tokens=settings.row_tokens)
        per_token = 2 * shape.hidden_size * small + 2 * ffn * small / tp + kept_per_token(shape, whole)
    return int(settings.own_tokens * per_token)


def _logits(shape: ModelShape, settings: MemorySettings, *, trainable: bool, weight_gradient: int) -> int:
    """Everything as wide as the vocabulary of one chunk, and the gradients by the output projection's sides."""
    return projection_bytes(
        settings.own_tokens,
        -(-shape.vocab_size // settings.tp),
        shape.hidden_size,
        chunk_tokens=settings.chunk_tokens,
        compute_bytes=settings.compute_bytes,
        trainable=trainable,
        entropy=settings.watch_entropy,
        weight_gradient=weight_gradient,
    )


def _gathered(layer: int, ends: int, settings: MemorySettings) -> int:
    """Whole copies that FSDP makes: of embedding and output projection for the whole pass, and of two blocks.

    The block at work and the one fetched ahead; while it is fetched, its parts lie in a buffer as well.
    """
    if not settings.gathers:
        return 0
    return (ends + 3 * layer) * settings.compute_bytes // settings.tp


def _gradient_buffers(layer: int, settings: MemorySettings) -> int:
    """A block's whole gradient, and the buffer in which it is summed over ranks in float32."""
    if not settings.gathers:
        return 0
    return layer * (settings.compute_bytes + FP32) // settings.tp
