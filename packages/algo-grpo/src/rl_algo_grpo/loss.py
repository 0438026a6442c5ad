"""The policy losses: four surrogates with a common frame of KL, entropy and mismatch terms.

Flat per-token tensors; all log-probabilities are those of the sampled tokens at the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rl_algo_common.kl import KlEstimator, kl_estimate
from rl_algo_common.losses import (
    Reduction,
    bounded_exp,
    clipped_surrogate,
    corrected,
    masked,
    maximum,
    measured_mean,
    reduce_tokens,
    sequence_mean,
    token_mean,
    with_entropy_bonus,
)
from torch import Tensor

Surrogate = Literal["clip", "gspo", "cispo", "reinforce"]


def policy_loss(
    outputs: Any,
    batch: Any,
    scale: Any,
    *,
    loss: Surrogate,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    reduction: Reduction,
    constant_length: int | None,
    kl_coefficient: float,
    kl_estimator: KlEstimator,
    entropy_coefficient: float,
    mismatch: Mapping[str, Any],
    on_policy: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """``w · surrogate + kl_coefficient · KL(π ‖ π_ref)``, reduced, minus ``entropy_coefficient`` · H(π).

    Args:
        outputs: ``logprobs`` float [T], ``sequence_ids`` int64 [T], ``sum_per_sequence``; ``entropy``
            float [T] or None.
        batch: token columns ``loss_mask``, ``advantages``, ``sampled_logprobs``, further
            ``old_logprobs`` unless ``on_policy``, and ``ref_logprobs`` if ``kl_coefficient`` > 0.
        scale: global counts ``tokens`` and ``sequences`` of the optimizer step.
        mismatch: ``correction``, ``level``, ``low`` and ``high`` of
            :func:`rl_algo_common.losses.corrected`; the weights w apply to the surrogate only.
        on_policy: no update was made since the old policy, so the current log-probs are the old ones.

    Returns:
        the loss and means over the tokens that are computed on: ``policy/clip_fraction`` (not for ``reinforce``),
        ``policy/max_ratio``, ``policy/kl_reference`` and ``policy/entropy`` where they are computed, ``mismatch/…``.
    """
    mask = batch["loss_mask"]
    logprobs = masked(outputs.logprobs, mask)
    old = logprobs.detach() if on_policy else masked(batch["old_logprobs"], mask)
    log_ratio = logprobs - old
    if loss == "gspo":
        log_ratio = sequence_log_ratio(log_ratio, mask, outputs)
    clip: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high}
    if loss == "cispo":
        per_token, ratio, clipped = weighted_logprobs(log_ratio, logprobs, batch["advantages"], **clip)
    elif loss == "reinforce":
        per_token, ratio, clipped = -batch["advantages"] * logprobs, bounded_exp(log_ratio), None
    else:
        per_token, ratio, clipped = clipped_surrogate(log_ratio, batch["advantages"], **clip, dual_clip=dual_clip)

    metrics = {"policy/max_ratio": maximum(masked(ratio.detach(), mask))}
    if clipped is not None:
        # Where the advantage is 0 a clip holds nothing back, but cispo holds the weight of every token.
        mean = measured_mean if loss == "cispo" else token_mean
        metrics["policy/clip_fraction"] = mean(clipped, mask, scale)
    gap = old - masked(batch["sampled_logprobs"], mask)
    per_token, mismatch_metrics = corrected(per_token, gap, mask, outputs, scale, **mismatch)
    metrics |= mismatch_metrics
    if kl_coefficient > 0:
        kl = kl_estimate(masked(batch["ref_logprobs"], mask) - logprobs, kl_estimator)
        per_token = per_token + kl_coefficient * kl
        metrics["policy/kl_reference"] = measured_mean(kl.detach(), mask, scale)
    total = reduce_tokens(per_token, mask, outputs, scale, reduction=reduction, constant_length=constant_length)
    total, entropy_metrics = with_entropy_bonus(total, mask, outputs, scale, coefficient=entropy_coefficient)
    return total, metrics | entropy_metrics


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor, outputs: Any) -> Tensor:
    """The mean log-ratio of each token's sequence, with the gradient of the token's own.

    Zheng et al. 2025, GSPO, eq. 14: ``s = exp(mean_t(log π - log π_old))`` as value, ``s ∇ log π`` as gradient.
    """
    return sequence_mean(log_ratio.detach(), mask, outputs) + (log_ratio - log_ratio.detach())


def weighted_logprobs(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``-sg(clip(ρ, 1 - clip_low, 1 + clip_high)) · A · log π`` (Chen et al. 2025, MiniMax-M1, CISPO, eq. 4).

    Every token keeps a gradient; only its weight is held.

    Returns:
        the loss, the ratio ρ, and where it was held (0 or 1), all float [T].
    """
    ratio = bounded_exp(log_ratio.detach())
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -weight * advantages * logprobs, ratio, (weight != ratio).to(ratio.dtype)
