"""The losses: plain functions over flat tensors, divided by counts over the whole optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = tuple[Tensor, dict[str, Tensor]]


def negative_log_likelihood(outputs: Any, batch: Any, scale: Any) -> Loss:
    """``- Σ_t w_t log π(y_t) / Σ w_t`` with the weights ``w`` in ``loss_mask``.

    Args:
        outputs: ``logprobs`` float [T].
        batch: token column ``loss_mask`` float32 [T]; weights may be fractional.
        scale: ``tokens`` = Σ w over the whole optimizer step.
    """
    return -_weighted_mean(outputs.logprobs, batch["loss_mask"], scale), {}


def smoothed_cross_entropy(
    outputs: Any, batch: Any, scale: Any, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Loss:
    """Weighted token mean of ``-(1-ε) log π(y) - ε mean_v log π(v) + z · logsumexp²``.

    The first two are the cross-entropy with the target ``(1-ε)·onehot + ε/V`` (Szegedy et al. 2016,
    arXiv:1512.00567), the third is PaLM's z-loss (Chowdhery et al. 2022, arXiv:2204.02311).

    Args:
        outputs: ``logprobs`` float [T]; with ε > 0 ``mean_logprobs``, with z > 0 ``logsumexp``, likewise.
        batch: token column ``loss_mask`` float32 [T].
        scale: ``tokens`` = Σ of the weights over the whole optimizer step.
        label_smoothing: ε.
        z_loss: z.

    Returns:
        the loss; metrics ``nll`` (the first term at ε = 0) and, with z > 0, ``z_loss`` (the third term).
    """
    weight = batch["loss_mask"]
    nll = -_weighted_mean(outputs.logprobs, weight, scale)
    loss, metrics = nll, {"nll": nll}
    if label_smoothing:
        uniform = -_weighted_mean(outputs.mean_logprobs, weight, scale)
        loss = (1 - label_smoothing) * nll + label_smoothing * uniform
    if z_loss:
        metrics["z_loss"] = z_loss * _weighted_mean(outputs.logsumexp.square(), weight, scale)
        loss = loss + metrics["z_loss"]
    return loss, metrics


def bradley_terry(
    outputs: Any, batch: Any, scale: Any, *, margin: float = 0.0, center_rewards_coefficient: float = 0.0
) -> Loss:
    """Mean over pairs of ``-log σ(r_c - r_r - m) + λ (r_c + r_r)²``.

    The first term is the Bradley-Terry likelihood with a margin (Touvron et al. 2023,
    arXiv:2307.09288, eq. 2), the second centres rewards at 0 (Eisenstein et al. 2023, arXiv:2312.09244).

    Args:
        outputs: ``scores`` float [B].
        batch: sequence columns ``unit`` int64 [B] (the same id for a pair's two sequences, which may
            stand anywhere), ``chosen`` bool [B] and, with a margin of each pair's own, ``margin`` float [B].
        scale: ``units`` = pairs in the whole optimizer step.
        margin: m of pairs without a column.
        center_rewards_coefficient: λ.

    Returns:
        the loss; metrics ``accuracy`` (r_c > r_r; a tie counts half), ``margin`` (mean of r_c - r_r),
        ``score_mean`` (over both), and with λ > 0 ``centering`` (the second term).

    Raises:
        ValueError: a unit is not one chosen and one rejected sequence.
    """
    units, pair = torch.unique(batch["unit"], return_inverse=True)
    sign = torch.where(batch["chosen"], 1, -1)
    _check_pairs(units, pair, sign)

    def per_pair(values: Tensor) -> Tensor:
        return values.new_zeros(len(units)).index_add(0, pair, values)

    difference = per_pair(outputs.scores * sign)
    total = per_pair(outputs.scores)
    wanted = per_pair(batch["margin"]) / 2 if "margin" in batch else margin
    loss = softplus(wanted - difference).sum() / scale.units
    right = (difference > 0).float() + 0.5 * (difference == 0).float()
    metrics = {
        "preference_accuracy": right.sum() / scale.units,
        "margin": difference.sum() / scale.units,
        "score_mean": total.sum() / (2 * scale.units),
    }
    if center_rewards_coefficient:
        metrics["centering"] = center_rewards_coefficient * total.square().sum() / scale.units
        loss = loss + metrics["centering"]
    return loss, metrics


def _weighted_mean(values: Tensor, weight: Tensor, scale: Any) -> Tensor:
    # torch.where, not a product alone: where the weight is 0 the value is not defined by the contract.
    return (torch.where(weight != 0, values, torch.zeros_like(values)) * weight).sum() / scale.tokens


def _check_pairs(units: Tensor, pair: Tensor, sign: Tensor) -> None:
    size = torch.bincount(pair, minlength=len(units))
    balance = torch.zeros_like(size).index_add(0, pair, sign)
    odd = (size != 2) | (balance != 0)
    if odd.any():
        where = int(odd.nonzero()[0])
        chosen = int((size[where] + balance[where]) // 2)
        raise ValueError(
            f"a pair is one chosen and one rejected sequence, but unit {int(units[where])} of the micro-batch has "
            f"{chosen} chosen and {int(size[where]) - chosen} rejected"
        )
