"""Arithmetic that backends share to tell what a rank will need before anything starts. Imports no torch.

The sizes of tensors that :mod:`rl_torch` makes are counted here, and settings tried until a job fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl_core.contracts.model import AdapterSpec
from rl_core.contracts.rating import BackendJob, MemoryEstimate, ModelShape

CHUNK_ELEMENTS = 2**24
"""Logits held at once, by default: 64 MB in float32."""

# Attention over a packed row is dense with a mask: its cost grows with the square of the row.
# Forward + backward of 64 sequences, hidden 128, 2 layers, on one core:
#   8-11 tokens:    padded 34 ms | rows of 32: 29, 128: 38, 512: 92 ms
#   20-199 tokens:  padded 718 ms (waste 45 %) | rows of 200: 488, 256: 516, 512: 611 ms
#   100-499 tokens: padded 2.4 s (waste 41 %) | rows of 500: 1.8, 512: 2.0 s
# and with `plan` of rl_torch.microbatch (auto sorts by length): 8-11 tokens: auto 33, packed 32, padded 32 ms;
#   5-39: 75, 66, 115; 20-199: 403, 435, 703; 100-499: 1460, 1809, 1600 ms.
CPU_ROW_TOKENS = 128
"""Width of a packed row on CPU, if no sequence is longer."""

FP32 = 4
"""Bytes."""

TOO_LARGE = 10
"""Score of a job that is not expected to fit."""

ROOM = 0.9
"""Fraction of a GPU's memory that an estimate may take: CUDA, NCCL and fragmentation need some as well."""


def adapter_layers(shape: ModelShape, adapter: AdapterSpec) -> dict[str, tuple[int, int]]:
    """Linear layers of a block that get an adapter: name → (inputs, outputs)."""
    targets = {target.rpartition(".")[2] for target in adapter.target_modules}
    return {name: sizes for name, sizes in shape.linears().items() if not targets or name in targets}


def adapter_parameters(shape: ModelShape, adapter: AdapterSpec) -> int:
    """Numbers that the adapter trains: rank · (inputs + outputs) of each linear layer it is put on.

    DoRA adds the length of each row; AdaLoRA starts from its higher rank, and has one factor for each of its ranks.
    """
    rank = adapter.initial_rank if adapter.kind == "adalora" else adapter.rank
    more = {"lora": lambda _: 0, "dora": lambda outputs: outputs, "adalora": lambda _: rank}[adapter.kind]
    layers = adapter_layers(shape, adapter).values()
    return shape.layers * sum(rank * (inputs + outputs) + more(outputs) for inputs, outputs in layers)


def projection_bytes(
    tokens: int,
    vocabulary: int,
    hidden: int,
    *,
    chunk_tokens: int | None,
    compute_bytes: int,
    trainable: bool,
    entropy: bool,
    weight_gradient: int,
) -> int:
    """Tensors of the output projection that :func:`rl_torch.logprobs.token_outputs` holds at once.

    Those of one chunk of tokens × vocabulary. One chunk for everything: its log-probs are kept, and probabilities and
    gradient. Several: the logits, and the gradient of the chunk before, as well. A loss with the entropy needs three
    more for its derivative. Besides them the gradients by both factors.

    Args:
        hidden: width of the hidden states.
        weight_gradient: bytes of the gradient by the weights; 0 where they are not trained.
    """
    chunk = min(chunk_tokens or max(16, CHUNK_ELEMENTS // vocabulary), tokens)
    copies = 3 if chunk == tokens or not trainable else 5
    if entropy:
        copies += 3 if trainable else 1
    logits = chunk * vocabulary * (copies * FP32 + (compute_bytes if compute_bytes != FP32 else 0))
    by_hidden = tokens * hidden * compute_bytes if trainable else 0
    # By the weights: the sum over chunks, and one chunk's part of it.
    return logits + by_hidden + 2 * weight_gradient


def norms_per_token(shape: ModelShape, compute_bytes: int, *, weights_trained: bool) -> float:
    """Bytes of one token that a block's two norms keep: each its input in float32, what its weight multiplies, and its
    output, which the next linear layers keep as their input.
    """
    return 2 * shape.hidden_size * (FP32 + compute_bytes * (2 if weights_trained else 1)) + 2 * FP32


def microbatch_tokens(job: BackendJob, *, limit: int, data_ranks: int) -> tuple[int, int]:
    """``(positions of a full micro-batch, micro-batches of an optimizer step)`` on a rank; 2 stands for unknown, many.

    Args:
        limit: ``max_tokens_per_microbatch``.
        data_ranks: ranks that work on different sequences.
    """
    # A sequence that is longer than a micro-batch gets one of its own.
    full = max(limit, job.max_length)
    if job.tokens_per_step is None:
        return full, 2
    per_rank = -(-job.tokens_per_step // data_ranks)
    return min(full, per_rank), -(-per_rank // full)


@dataclass(frozen=True)
class Settings:
    """Fields of a backend's section to propose; ``how`` says what they do, and is empty for none."""

    score: int
    how: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """Settings that were tried last, the score and the reasons for it, and the memory they need."""

    settings: Settings
    score: int
    reasons: tuple[str, ...]
    memory: MemoryEstimate


def merged(proposed: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``proposed`` under what the user wrote, section by section."""
    result = dict(proposed)
    for key, value in given.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def first_that_fits(
    job: BackendJob, options: Sequence[Settings], estimate: Callable[[Mapping[str, Any]], MemoryEstimate]
) -> Fit:
    """The first of ``options`` with which the job fits a GPU; the last if none does.

    Args:
        estimate: for the fields of a section.
    """
    limit = job.gpu_memory_bytes if job.gpus and job.gpu_memory_bytes is not None else math.inf
    for settings in options:
        memory = estimate(merged(settings.fields, job.given))
        if memory.peak <= ROOM * limit:
            return Fit(settings, settings.score, (f"fits with {settings.how}",) if settings.how else (), memory)
    even = f", even with {settings.how}" if settings.how else ""
    needs = f"needs {memory.peak / 2**30:.1f} GiB of a GPU's {limit / 2**30:.1f} GiB{even}"
    return Fit(settings, TOO_LARGE, (needs,), memory)
