"""From logits to one token per row and its log-probability."""

from __future__ import annotations

import torch
from rl_core.contracts.generator import SamplingParams
from torch import Tensor

from rl_generation_hf.exclusion import NeverSampled

# Rows are sampled in chunks of about this many logits, which bounds the float64 temporaries.
_CHUNK_ELEMENTS = 2**24


def sample(
    logits: Tensor, uniforms: Tensor, sampling: SamplingParams, never: NeverSampled | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at ``uniforms``.

    Args:
        logits: [R, V], any floating type.
        uniforms: float64 [R] in [0, 1); unused at temperature 0.
        sampling: its ``temperature``, ``top_k`` and ``top_p`` are used.
        never: ids that are not drawn.

    Returns:
        Tokens int64 [R] and float32 [R] log-probabilities over the full vocabulary at the sampling
        temperature (at temperature 0: at temperature 1), before ``never``, top-k and top-p.
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    if len(logits) <= rows:
        return _sample(logits, uniforms, sampling, never)
    parts = [
        _sample(part, u, sampling, never) for part, u in zip(logits.split(rows), uniforms.split(rows), strict=True)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _sample(
    logits: Tensor, uniforms: Tensor, sampling: SamplingParams, never: NeverSampled | None
) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    excluded = None if never is None or never.none else never
    if excluded is not None:
        excluded.exclude(logprobs)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(dim=-1)
    else:
        # The most likely token that is left gets weight 1, so that a little probability is enough.
        weights = (logprobs - logprobs.amax(-1, keepdim=True)).exp_() if excluded is not None else logprobs.exp()
        tokens = _invert(_filtered(weights, sampling), uniforms)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _filtered(probabilities: Tensor, sampling: SamplingParams) -> Tensor:
    """Zero what top-k, then top-p on what is left, exclude; ties with the last kept token are kept.

    They need not sum to 1. Only values are compared, never positions, so the result does not depend on a sort's tie
    order.
    """
    if 0 < sampling.top_k < probabilities.shape[1]:
        smallest = probabilities.topk(sampling.top_k, dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    if sampling.top_p < 1:
        ordered = probabilities.sort(dim=-1, descending=True).values
        before = ordered.double().cumsum(-1)
        total = before[:, -1:].clone()
        before -= ordered
        kept = before < sampling.top_p * total
        kept[:, 0] = True
        smallest = ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    return probabilities


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``uniform × total``; never one of weight 0."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # Only NaN logits reach past the end; the caller reports those by their log-probability.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
