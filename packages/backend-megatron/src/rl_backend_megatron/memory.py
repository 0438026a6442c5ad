"""Memory of a rank, counted tensor by tensor from the shapes of its models. Imports no torch.

Nothing here is fitted to measurements: every number is the size of a tensor that exists while Megatron Core runs the
layers of :mod:`rl_backend_megatron.modules`. What is left out is small (token ids, what stages send each other) or
outside the model (libraries, NCCL's buffers; on CPU also the whole new model that ``model.init`` draws first).

A training step has six moments that can be its peak, see :func:`_peak`: the role is built; the backward pass begins
with the logits; it reaches the last block; it ends with the embedding; the optimizer steps; a role only computes
outputs. Pipeline stages differ (embedding, output projection, micro-batches in flight), and the largest one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rl_core.contracts.model import AdapterSpec, Head
from rl_core.contracts.rating import JobRole, MemoryEstimate, ModelShape
from rl_torch.estimates import FP32, adapter_layers, norms_per_token, projection_bytes

from rl_backend_megatron.parallelism import padded_vocabulary

ROW_PARALLEL = frozenset({"o_proj", "down_proj"})
"""Layers that tensor parallelism splits by their inputs; the others are split by their outputs."""


@dataclass(frozen=True)
class MemorySettings:
    """The settings that memory depends on.

    Attributes:
        tp, pp, dp: extents of the grid.
        sequence: tensor-parallel ranks split all other activations, too.
        compute_bytes: of a number in the forward and backward pass: 4, or 2 for bf16.
        distributed: the optimizer's state is split over the data-parallel ranks.
        recompute: blocks are computed again in the backward pass.
        tokens: positions of a full micro-batch.
        microbatches: of an optimizer step; a stage holds the activations of several.
        chunk_tokens: tokens whose logits exist at once; None for the default.
        watch_entropy: the loss looks at the entropy as well.
        cuda: torch's AdamW then works on all parameters at once, not one after the other.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    sequence: bool = False
    compute_bytes: int = FP32
    distributed: bool = True
    recompute: bool = False
    tokens: int = 16384
    microbatches: int = 2
    chunk_tokens: int | None = None
    watch_entropy: bool = False
    cuda: bool = False

    @property
    def between(self) -> int:
        """Ranks that share activations between the matrices of a block."""
        return self.tp if self.sequence else 1


@dataclass(frozen=True)
class StageParameters:
    """Parameters of a role on one rank of a pipeline stage, and of its largest tensors."""

    total: int
    embedding: int
    output: int
    largest: int


def estimate_memory(
    roles: Sequence[JobRole], settings: MemorySettings, *, adapter: AdapterSpec | None = None
) -> MemoryEstimate:
    """Bytes on the rank that needs most, for all ``roles``, whose shapes must be known.

    The groups are counted at their own largest moment, ``peak`` at the step's.
    """
    return max((_stage_memory(roles, settings, adapter, stage) for stage in range(settings.pp)), key=lambda m: m.peak)


def stage_parameters(shape: ModelShape, head: Head, settings: MemorySettings, stage: int) -> StageParameters:
    """Count what pipeline stage ``stage`` holds: its part of the layers, embedding, last norm and output projection.

    A tied output projection is the embedding itself on a single stage, and a copy of it on the last of several.
    """
    first, last = stage == 0, stage == settings.pp - 1
    hidden = shape.hidden_size
    table = padded_vocabulary(shape.vocab_size, settings.tp) // settings.tp * hidden
    whole = shape.parameters(head).layer
    split = sum(inputs * outputs for inputs, outputs in shape.linears().values())
    if shape.attention_bias:
        split += shape.query_width + 2 * shape.key_width
    layer = split // settings.tp + whole - split
    output = 0
    if last:
        output = hidden if head == "scalar" else 0 if shape.tie_embeddings and settings.pp == 1 else table
    embedding = table if first else 0
    total = embedding + layer * (shape.layers // settings.pp) + (hidden if last else 0) + output
    fused = hidden * max(2 * shape.ffn, shape.query_width + 2 * shape.key_width) // settings.tp
    return StageParameters(total, embedding, output, largest=max(fused, embedding, output))


def stage_adapter_parameters(shape: ModelShape, adapter: AdapterSpec, settings: MemorySettings) -> int:
    """Numbers that LoRA trains on one rank: of each pair, one matrix is split like its layer, the other repeated."""
    per_layer = 0
    for name, (inputs, outputs) in adapter_layers(shape, adapter).items():
        split, repeated = (inputs, outputs) if name in ROW_PARALLEL else (outputs, inputs)
        per_layer += adapter.rank * (split // settings.tp + repeated)
    return per_layer * (shape.layers // settings.pp)


def kept_per_token(shape: ModelShape, settings: MemorySettings, *, weights_trained: bool = True) -> float:
    """Bytes of one token that one decoder layer keeps for its backward pass.

    Besides the norms, attention keeps the fused product (values are a part of it), queries and keys after
    the rotation with its cosines and sines, the kernel's sums, and its result as the next layer's input. The gated
    feed-forward part keeps both products in one tensor, the second one again, the activation function's result, and
    what the last matrix multiplies.
    """
    small, query, key = settings.compute_bytes, shape.query_width, shape.key_width
    norms = norms_per_token(shape, small, weights_trained=weights_trained)
    attention = (3 * query + 3 * key) * small + shape.heads * FP32
    if shape.qk_norm:
        copied = query * FP32 + (0 if small == FP32 else key * FP32)
        attention += copied + (query + key) * small + (shape.heads + shape.kv_heads) * FP32
    feed_forward = 5 * shape.ffn * small
    return norms / settings.between + (attention + feed_forward) / settings.tp + 4 * shape.head_dim * small


@dataclass(frozen=True)
class _RoleMemory:
    """Bytes of one role on one rank.

    ``gradients`` are float32 sums; ``embedding_gradient`` is what autograd hands them for the embedding, and
    ``pending`` what the output projection leaves waiting for it where both are one. ``stepping`` is what the optimizer
    needs besides its state, ``building`` all that exists for a moment while the role is loaded.
    """

    stored: int
    optimizer: int
    gradients: int
    kept: int
    block_temporaries: int
    logits: int
    embedding_gradient: int
    pending: int
    stepping: int
    building: int
    trainable: bool


def _stage_memory(
    roles: Sequence[JobRole], settings: MemorySettings, adapter: AdapterSpec | None, stage: int
) -> MemoryEstimate:
    parts = [_role_memory(role, settings, adapter, stage) for role in roles]
    stored, optimizer = sum(p.stored for p in parts), sum(p.optimizer for p in parts)
    # Megatron keeps the sums of gradients of every role it trains, all the time.
    gradients = sum(p.gradients for p in parts)
    lasting = stored + optimizer + gradients
    building = max(
        sum(p.stored + p.gradients for p in parts[:index]) + part.building for index, part in enumerate(parts)
    )
    return MemoryEstimate(
        parameters=stored,
        gradients=gradients + max(p.embedding_gradient for p in parts),
        optimizer=optimizer + max(p.stepping for p in parts),
        activations=max(p.kept + p.block_temporaries for p in parts),
        logits=max(p.logits for p in parts),
        peak=max(building, lasting + max(map(_peak, parts))),
    )


def _peak(role: _RoleMemory) -> int:
    """The most of what comes and goes while ``role`` works."""
    if not role.trainable:
        return role.block_temporaries + role.logits
    block = role.kept + role.pending + role.block_temporaries
    # Both gradients of a tied embedding, and their sum.
    end = role.embedding_gradient + 2 * role.pending
    return max(role.kept + role.logits, block, end, role.stepping)


def _role_memory(part: JobRole, settings: MemorySettings, adapter: AdapterSpec | None, stage: int) -> _RoleMemory:
    shape, role = part.shape, part.role
    if shape is None:
        raise ValueError(f"the shape of role {role.name!r} is unknown")
    small, last = settings.compute_bytes, stage == settings.pp - 1
    count = stage_parameters(shape, role.head, settings, stage)
    adapted = adapter is not None and role.trainable
    added = stage_adapter_parameters(shape, adapter, settings) if adapter is not None and adapted else 0
    if adapted and role.head == "scalar" and last:
        trained = added + shape.hidden_size
    else:
        trained = added if adapted else count.total * role.trainable
    stored = 0 if role.base_of else (count.total + added) * small
    shards = settings.dp if settings.distributed else 1
    state = (2 if small == FP32 else 3) * FP32
    whole = role.trainable and not adapted
    tied = shape.tie_embeddings and role.head == "lm" and settings.pp == 1
    projected = last and role.head == "lm"
    return _RoleMemory(
        stored=stored,
        optimizer=state * trained // shards,
        gradients=FP32 * trained,
        kept=_kept(shape, settings, stage, weights_trained=whole) if role.trainable else 0,
        block_temporaries=_block_temporaries(shape, settings, trainable=role.trainable, weights_trained=whole),
        logits=_logits(shape, settings, trainable=role.trainable, weights_trained=whole) if projected else 0,
        embedding_gradient=count.embedding * small if whole else 0,
        pending=count.embedding * small if whole and tied else 0,
        stepping=FP32 * (trained // shards if settings.cuda else 2 * min(trained, count.largest) // shards),
        # The distributed optimizer moves parameters into a buffer of its own.
        building=stored + FP32 * trained + (trained * small if settings.distributed else 0),
        trainable=role.trainable,
    )


def _kept(shape: ModelShape, settings: MemorySettings, stage: int, *, weights_trained: bool) -> int:
    """Activations at their most: of the micro-batches in flight in a 1F1B schedule (Narayanan et al. 2021)."""
    small = settings.compute_bytes
    layers = shape.layers // settings.pp
    per_token = layers * kept_per_token(shape, settings, weights_trained=weights_trained)
    if settings.recompute:
        per_token = layers * shape.hidden_size * small / settings.between
    in_flight = min(settings.microbatches, settings.pp - stage)
    total = settings.tokens * per_token * in_flight
    if stage == settings.pp - 1:
        # The last norm, its result, and the scored tokens' part of it.
        total += settings.tokens * shape.hidden_size * ((FP32 + small) / settings.between + 2 * small)
    return int(total)


def _block_temporaries(shape: ModelShape, settings: MemorySettings, *, trainable: bool, weights_trained: bool) -> int:
    """Tensors that exist only while a layer is worked on.

    Backward: the gradients of the layer's output and of the feed-forward part's products, and of its first matrix;
    with recomputation also what the layer keeps. Forward: the residual stream, and the feed-forward part's tensors.
    """
    small = settings.compute_bytes
    per_token = 2 * shape.hidden_size * small + 4 * shape.ffn * small / settings.tp
    matrix = 0
    if trainable and settings.recompute:
        per_token += kept_per_token(shape, settings, weights_trained=weights_trained)
    if trainable and weights_trained:
        matrix = 2 * shape.hidden_size * shape.ffn // settings.tp * small
    return int(settings.tokens * per_token) + matrix


def _logits(shape: ModelShape, settings: MemorySettings, *, trainable: bool, weights_trained: bool) -> int:
    """Everything as wide as the vocabulary of one chunk, and the gradients by the output projection's sides."""
    rows = padded_vocabulary(shape.vocab_size, settings.tp) // settings.tp
    return projection_bytes(
        settings.tokens,
        rows,
        shape.hidden_size,
        chunk_tokens=settings.chunk_tokens,
        compute_bytes=settings.compute_bytes,
        trainable=trainable,
        entropy=settings.watch_entropy,
        weight_gradient=rows * shape.hidden_size * FP32 if trainable and weights_trained else 0,
    )
