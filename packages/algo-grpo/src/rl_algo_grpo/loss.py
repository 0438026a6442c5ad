"""The clipped policy-gradient loss, on flat per-token tensors.

All log-probabilities are those of the sampled tokens at the sampling temperature. Exponents are
held within ±20, so that a token far off the policy gives a large number instead of infinity.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["token", "sequence", "constant"]
KlEstimator = Literal["k1", "k2", "k3"]

_LARGEST_EXPONENT = 20.0


def policy_loss(
    outputs: Any,
    batch: Any,
    scale: Any,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    reduction: Reduction,
    constant_length: int | None,
    kl_coefficient: float,
    kl_estimator: KlEstimator,
    on_policy: bool,
    entropy_metric: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GRPO's loss (Shao et al. 2024): clipped surrogate plus ``kl_coefficient`` · KL(π ‖ π_ref).

    Args:
        outputs: ``logprobs`` float [T], ``sequence_ids`` int64 [T], ``sum_per_sequence``; ``entropy``
            float [T] if ``entropy_metric``.
        batch: token columns ``loss_mask``, ``advantages``, ``sampled_logprobs``, further
            ``old_logprobs`` unless ``on_policy``, and ``ref_logprobs`` if ``kl_coefficient`` > 0.
        scale: global counts ``tokens`` and ``sequences`` of the optimizer step.
        on_policy: no update was made since the old policy, so the current log-probs are the old ones.

    Returns:
        the loss and token means: ``policy/clip_fraction``, ``policy/max_ratio``,
        ``policy/kl_reference`` and ``policy/entropy`` where asked, ``mismatch/…``.
    """
    mask = batch["loss_mask"]
    logprobs = masked(outputs.logprobs, mask)
    old = logprobs.detach() if on_policy else masked(batch["old_logprobs"], mask)
    per_token, ratio, clipped = clipped_surrogate(
        logprobs - old, batch["advantages"], clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )

    def token_mean(values: Tensor) -> Tensor:
        return (values.detach() * mask).sum() / scale.tokens

    metrics = {"policy/clip_fraction": token_mean(clipped), "policy/max_ratio": maximum(masked(ratio.detach(), mask))}
    if kl_coefficient > 0:
        kl = kl_estimate(masked(batch["ref_logprobs"], mask) - logprobs, kl_estimator)
        per_token = per_token + kl_coefficient * kl
        metrics["policy/kl_reference"] = token_mean(kl)
    if entropy_metric:
        metrics["policy/entropy"] = token_mean(masked(outputs.entropy, mask))

    gap = old - masked(batch["sampled_logprobs"], mask)
    metrics["mismatch/mean_w"] = token_mean(bounded_exp(gap))
    metrics["mismatch/kl_k3"] = token_mean(kl_estimate(gap, "k3"))
    metrics["mismatch/max_abs_logprob_gap"] = maximum(gap.detach().abs())
    loss = reduce_tokens(per_token, mask, outputs, scale, reduction=reduction, constant_length=constant_length)
    return loss, metrics


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


def kl_estimate(d: Tensor, estimator: KlEstimator) -> Tensor:
    """KL from samples of the first distribution (Schulman 2020, "Approximating KL divergence").

    Args:
        d: log-prob of the second distribution minus that of the first, float [T]; held within ±20.
    """
    d = d.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    return torch.expm1(d) - d


def reduce_tokens(
    per_token: Tensor, mask: Tensor, outputs: Any, scale: Any, *, reduction: Reduction, constant_length: int | None
) -> Tensor:
    """Sum the loss over this micro-batch's tokens, divided by counts of the whole optimizer step.

    ``token``: Σ / N_tok (Yu et al. 2025, DAPO). ``sequence``: the mean over sequences of their token
    mean (Shao et al. 2024). ``constant``: Σ / (N_seq · constant_length) (Liu et al. 2025, Dr. GRPO).
    """
    weighted = per_token * mask
    if reduction == "token":
        return weighted.sum() / scale.tokens
    if reduction == "sequence":
        # Divided token by token: so the sum may be split within a sequence as well.
        length = outputs.sum_per_sequence(mask).clamp(min=torch.finfo(mask.dtype).tiny)
        return (weighted / length[outputs.sequence_ids]).sum() / scale.sequences
    return weighted.sum() / (scale.sequences * constant_length)


def bounded_exp(x: Tensor) -> Tensor:
    """``exp`` of x held within ±20."""
    return x.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp()


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is non-zero, else 0, whatever stands there."""
    return torch.where(mask != 0, values, torch.zeros_like(values))


def maximum(values: Tensor) -> Tensor:
    """The largest of non-negative values; 0 where there are none."""
    return values.max() if values.numel() else values.new_zeros(())
