"""PPO's two losses, on flat per-token tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rl_algo_common.losses import (
    Reduction,
    clipped_surrogate,
    corrected,
    masked,
    maximum,
    reduce_tokens,
    token_mean,
    with_entropy_bonus,
)
from torch import Tensor


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
    entropy_coefficient: float,
    mismatch: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """``w · clipped surrogate`` (Schulman et al. 2017, eq. 7), reduced, minus ``entropy_coefficient`` · H(π).

    Args:
        outputs: ``logprobs`` float [T], ``sequence_ids`` int64 [T], ``sum_per_sequence``; ``entropy``
            float [T] where it is wanted.
        batch: token columns ``loss_mask``, ``advantages``, ``sampled_logprobs`` and ``old_logprobs``.
            Without the last one no update was made since the old policy: the current log-probs are the old ones.
        scale: global counts ``tokens`` and ``sequences`` of the optimizer step.
        mismatch: ``correction``, ``level``, ``low`` and ``high`` of
            :func:`rl_algo_common.losses.corrected`.

    Returns:
        the loss, and ``policy/clip_fraction``, ``policy/max_ratio``, ``policy/entropy`` where it was
        computed, and ``mismatch/…``.
    """
    mask = batch["loss_mask"]
    logprobs = masked(outputs.logprobs, mask)
    old = masked(batch["old_logprobs"], mask) if "old_logprobs" in batch else logprobs.detach()
    per_token, ratio, clipped = clipped_surrogate(
        logprobs - old, batch["advantages"], clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    gap = old - masked(batch["sampled_logprobs"], mask)
    metrics = {
        "policy/clip_fraction": token_mean(clipped, mask, scale),
        "policy/max_ratio": maximum(masked(ratio.detach(), mask)),
    }
    per_token, mismatch_metrics = corrected(per_token, gap, mask, outputs, scale, **mismatch)
    loss = reduce_tokens(per_token, mask, outputs, scale, reduction=reduction, constant_length=constant_length)
    loss, entropy_metrics = with_entropy_bonus(loss, mask, outputs, scale, coefficient=entropy_coefficient)
    return loss, metrics | mismatch_metrics | entropy_metrics


def value_loss(outputs: Any, batch: Any, scale: Any, *, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Token mean of ``½ · max((V - R)², (clip(V, V_old ± clip) - R)²)`` (Schulman et al. 2017, OpenAI baselines).

    Args:
        outputs: ``values`` float [T]: at t, of the state before token t.
        batch: token columns ``loss_mask``, ``returns`` and, with ``clip``, ``old_values``.
        scale: global count ``tokens`` of the optimizer step.
        clip: in units of reward; None for ``½ · (V - R)²``.

    Returns:
        the loss and, with ``clip``, ``value/clip_fraction``.
    """
    mask, returns = batch["loss_mask"], batch["returns"]
    values = outputs.values
    error = (values - returns).square()
    if clip is None:
        return 0.5 * token_mean(error, mask, scale), {}
    old = batch["old_values"]
    held_error = (torch.clamp(values, old - clip, old + clip) - returns).square()
    clipped = (held_error > error).to(error.dtype)
    loss = 0.5 * token_mean(torch.maximum(error, held_error), mask, scale)
    return loss, {"value/clip_fraction": token_mean(clipped, mask, scale)}
