"""Shared parts of policy-gradient losses, on flat per-token tensors.

All log-probabilities are those of the sampled tokens at the sampling temperature. Exponents are
held within ±20, so that a token far off the policy gives a large number instead of infinity. Every
sum is divided by a count of the whole optimizer step (``scale``), so that micro-batches and ranks add up.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rl_algo_common.kl import LARGEST_EXPONENT, kl_estimate

Reduction = Literal["token", "sequence", "constant"]
Correction = Literal["none", "tis", "icepop", "seq-mask"]
Level = Literal["token", "sequence"]


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``max(-A ρ, -A clip(ρ, 1 - clip_low, 1 + clip_high))`` per token (Schulman et al. 2017).

    With ``dual_clip`` c, tokens with A < 0 cost at most ``-A c`` (Ye et al. 2020).

    Returns:
        the loss, the ratio ρ = exp(log_ratio), and where a clip acted (0 or 1), all float [T].
    """
    ratio = bounded_exp(log_ratio)
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(free, held)
    clipped = held > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        above = (advantages < 0) & (loss > ceiling)
        loss = torch.where(above, ceiling, loss)
        clipped = clipped | above
    return loss, ratio, clipped.to(loss.dtype)


def reduce_tokens(
    per_token: Tensor, mask: Tensor, outputs: Any, scale: Any, *, reduction: Reduction, constant_length: int | None
) -> Tensor:
    """Sum the loss over this micro-batch's tokens, divided by counts of the whole optimizer step.

    ``token``: Σ / N_tok (Yu et al. 2025, DAPO). ``sequence``: the mean over sequences of their token
    mean (Shao et al. 2024). ``constant``: Σ / (N_seq · constant_length) (Liu et al. 2025, Dr. GRPO).
    """
    weighted = per_token * mask
    if reduction == "token":
        return weighted.sum() / _tokens(scale)
    if reduction == "sequence":
        # Divided token by token: so the sum may be split within a sequence as well.
        return (weighted / _tokens_of_sequence(mask, outputs)).sum() / scale.sequences
    return weighted.sum() / (scale.sequences * constant_length)


def token_mean(values: Tensor, mask: Tensor, scale: Any) -> Tensor:
    """This micro-batch's part of the mean over the tokens of the optimizer step; 0 if there are none."""
    return (masked(values, mask) * mask).sum() / _tokens(scale)


def measured_mean(values: Tensor, mask: Tensor, scale: Any) -> Tensor:
    """:func:`token_mean` over the tokens that are computed on, for a metric in which skipped ones do not count 0."""
    return (masked(values, mask) * mask).sum() / (scale.measured_tokens or 1.0)


def sequence_mean(values: Tensor, mask: Tensor, outputs: Any) -> Tensor:
    """``Σ x·mask / Σ mask`` of each token's own sequence, float [T]; 0 in a sequence whose mask is empty."""
    return outputs.sum_per_sequence(values * mask)[outputs.sequence_ids] / _tokens_of_sequence(mask, outputs)


def mismatch_metrics(gap: Tensor, mask: Tensor, scale: Any) -> dict[str, Tensor]:
    """Difference between the trainer's old policy and the generator's log-probs.

    Args:
        gap: ``log π_old - log μ``, float [T], 0 where the mask is.

    Returns:
        ``mismatch/mean_w`` (token mean of e^gap), ``mismatch/kl_k3`` and ``mismatch/max_abs_logprob_gap``.
    """
    gap = gap.detach()
    return {
        "mismatch/mean_w": measured_mean(bounded_exp(gap), mask, scale),
        "mismatch/kl_k3": measured_mean(kl_estimate(gap, "k3"), mask, scale),
        "mismatch/max_abs_logprob_gap": maximum(gap.abs()),
    }


def mismatch_weights(
    gap: Tensor, mask: Tensor, outputs: Any, *, correction: Correction, level: Level, low: float, high: float
) -> Tensor:
    """Factors for the per-token loss that correct for a generator that samples from another distribution.

    w = e^gap per token or, at ``level`` sequence, the product of w over the sequence.

    ``tis`` holds w below ``high`` (truncated importance sampling; Yao et al. 2025). ``icepop`` keeps
    w within [low, high] and sets it to 0 outside (Ling team 2025, "Every step evolves"). ``seq-mask``
    is 1, or 0 for all tokens of a sequence whose geometric mean of w is outside [low, high] (Liu et
    al. 2025, "When speed kills stability"). ``none`` is 1.

    Args:
        gap: ``log π_old - log μ``, float [T], 0 where the mask is.

    Returns:
        float [T] without gradient.
    """
    gap = gap.detach()
    if correction == "none":
        return torch.ones_like(gap)
    if correction == "seq-mask":
        mean = bounded_exp(sequence_mean(gap, mask, outputs))
        return ((mean >= low) & (mean <= high)).to(gap.dtype)
    if level == "sequence":
        gap = outputs.sum_per_sequence(gap * mask)[outputs.sequence_ids]
    weights = bounded_exp(gap)
    if correction == "tis":
        return weights.clamp(max=high)
    return torch.where((weights >= low) & (weights <= high), weights, torch.zeros_like(weights))


def corrected(
    per_token: Tensor,
    gap: Tensor,
    mask: Tensor,
    outputs: Any,
    scale: Any,
    *,
    correction: Correction,
    level: Level,
    low: float,
    high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The per-token loss times its :func:`mismatch_weights`.

    Args:
        gap: ``log π_old - log μ``, float [T], 0 where the mask is.

    Returns:
        float [T], and :func:`mismatch_metrics` with, for ``icepop`` and ``seq-mask``,
        ``mismatch/masked_fraction`` (share of tokens with a weight of 0).
    """
    metrics = mismatch_metrics(gap, mask, scale)
    if correction == "none":
        return per_token, metrics
    weights = mismatch_weights(gap, mask, outputs, correction=correction, level=level, low=low, high=high)
    if correction != "tis":
        metrics["mismatch/masked_fraction"] = measured_mean((weights == 0).to(mask.dtype), mask, scale)
    return weights * per_token, metrics


def with_entropy_bonus(
    loss: Tensor, mask: Tensor, outputs: Any, scale: Any, *, coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """``loss - coefficient · H(π)``, H a mean over tokens whatever the reduction of the loss.

    Returns:
        the loss, and ``policy/entropy`` where ``outputs`` has the entropy.
    """
    if outputs.entropy is None:
        return loss, {}
    total = loss - coefficient * token_mean(outputs.entropy, mask, scale) if coefficient > 0 else loss
    return total, {"policy/entropy": measured_mean(outputs.entropy.detach(), mask, scale)}


def bounded_exp(x: Tensor) -> Tensor:
    """``exp`` of x held within ±20."""
    return x.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is non-zero, else 0, whatever stands there."""
    return torch.where(mask != 0, values, torch.zeros_like(values))


def maximum(values: Tensor) -> Tensor:
    """The largest of non-negative values; 0 where there are none."""
    return values.max() if values.numel() else values.new_zeros(())


def _tokens(scale: Any) -> float:
    """Tokens of the optimizer step; 1 where all are masked, so that the loss is 0 and not 0/0."""
    return scale.tokens or 1.0


def _tokens_of_sequence(mask: Tensor, outputs: Any) -> Tensor:
    """float [T]: tokens of each token's own sequence."""
    return outputs.sum_per_sequence(mask).clamp(min=torch.finfo(mask.dtype).tiny)[outputs.sequence_ids]
