"""Preference losses, on flat per-token log-probs.

Sums over a sequence are taken in float64: a completion's log-prob is in the hundreds, and the loss
lives on the difference of two of them.

Notation: for a completion x, ``log π(x)`` is the sum over its tokens, ``|x|`` their number, and
``h_x = log π(x) - log π_ref(x)``. c is the chosen completion of a pair, r the rejected one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Metrics = dict[str, Tensor]

# Probabilities that round to 1 have no odds; held this far below, the log-odds end at 27.6.
_LARGEST_MEAN_LOGPROB = -1e-12


@dataclass(frozen=True)
class Completions:
    """The chosen, or the rejected, completions of P pairs.

    Attributes:
        logprob: float64 [P], ``log π(x)``.
        reference: float64 [P], ``log π_ref(x)``; None for a loss without reference.
        length: float64 [P], ``|x|``, the sum of the completion's ``loss_mask``.
    """

    logprob: Tensor
    reference: Tensor | None
    length: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """float64 [P], ``h_x``."""
        assert self.reference is not None
        return self.logprob - self.reference

    @property
    def mean_logprob(self) -> Tensor:
        """float64 [P], ``log π(x) / |x|``."""
        return self.logprob / self.length


@dataclass(frozen=True)
class PairLosses:
    """``loss`` [P] of P pairs, and the implicit rewards [P] that it compares."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def pair_loss(
    outputs: Any, batch: Any, scale: Any, *, loss: str, sft_coefficient: float = 0.0, **numbers: float
) -> tuple[Tensor, Metrics]:
    """The mean over pairs of ``loss``, plus ``sft_coefficient`` times the chosen completions' NLL.

    The NLL of a completion is its token mean ``- log π(c) / |c|``; it is averaged over pairs (Pang et
    al. 2024).

    Args:
        outputs: ``logprobs`` float [T] and ``sum_per_sequence``.
        batch: token column ``loss_mask``; sequence columns ``unit`` (int64, equal for the two sequences
            of a pair), ``chosen`` (bool) and, unless the loss has no reference, ``ref_logprob``
            (``log π_ref`` of the completion).
        scale: ``units`` = pairs in the whole optimizer step.
        loss: a function of this module: sigmoid, robust, ipo, hinge, simpo or orpo.
        numbers: its keyword arguments.

    Returns:
        the loss and means over pairs: ``accuracy`` (pairs whose chosen completion has the
        larger implicit reward), ``margin`` (difference of the implicit rewards), ``reward_chosen``,
        ``reward_rejected``, ``logp_chosen``, ``logp_rejected``, and ``nll_chosen`` where it is part
        of the loss.

    Raises:
        ValueError: a pair is not whole.
    """
    chosen, rejected = pair_up(outputs, batch)
    losses = LOSSES[loss](chosen, rejected, **numbers)
    nll = -chosen.mean_logprob

    def mean(values: Tensor) -> Tensor:
        return values.sum() / scale.units

    metrics = {
        "preference_accuracy": mean((losses.chosen_reward > losses.rejected_reward).double()),
        "margin": mean(losses.chosen_reward - losses.rejected_reward),
        "reward_chosen": mean(losses.chosen_reward),
        "reward_rejected": mean(losses.rejected_reward),
        "logp_chosen": mean(chosen.logprob),
        "logp_rejected": mean(rejected.logprob),
    }
    if sft_coefficient > 0 or loss == "orpo":
        metrics["nll_chosen"] = mean(nll)
    return mean(losses.loss + sft_coefficient * nll), {name: value.detach() for name, value in metrics.items()}


def kto_loss(
    outputs: Any,
    batch: Any,
    scale: Any,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    desirable: int,
    undesirable: int,
) -> tuple[Tensor, Metrics]:
    """KTO (Ethayarajh et al. 2024), the mean over sequences.

    With r = β h and the baseline z: ``λ_D (1 - σ(r - z))`` for desirable completions and
    ``λ_U (1 - σ(z - r))`` for undesirable ones.

    Args:
        outputs: ``logprobs`` float [T] and ``sum_per_sequence``.
        batch: token column ``loss_mask``; sequence columns ``desirable`` (bool), ``ref_logprob`` and
            ``kl_baseline`` (z, the same for all sequences of the step).
        scale: ``sequences`` in the whole optimizer step.
        desirable, undesirable: how many of them there are of each kind.

    Returns:
        the loss; ``kl`` = z / β; ``accuracy``: desirable completions with r > z and undesirable ones with r < z; of the
        kinds that the step has: ``reward_chosen``, ``logp_chosen`` (desirable), ``reward_rejected``,
        ``logp_rejected`` (undesirable), and with both ``margin``, the difference of the mean rewards.
    """
    logprob, _ = completion_sums(outputs, batch)
    reward = beta * (logprob - batch["ref_logprob"])
    baseline, wanted = batch["kl_baseline"].double(), batch["desirable"]
    # 1 - σ(x) = σ(-x), which does not round to 0 for large x.
    over = torch.where(wanted, reward - baseline, baseline - reward)
    weight = desirable_weight * wanted.double() + undesirable_weight * (~wanted).double()

    metrics = {"kl": baseline.sum() / scale.sequences / beta, "preference_accuracy": (over > 0).sum() / scale.sequences}
    for kind, members, count in (("chosen", wanted, desirable), ("rejected", ~wanted, undesirable)):
        if count:
            metrics[f"reward_{kind}"] = torch.where(members, reward, 0.0).sum() / count
            metrics[f"logp_{kind}"] = torch.where(members, logprob, 0.0).sum() / count
    if desirable and undesirable:
        metrics["margin"] = metrics["reward_chosen"] - metrics["reward_rejected"]
    loss = (weight * torch.sigmoid(-over)).sum() / scale.sequences
    return loss, {name: value.detach() for name, value in metrics.items()}


def sigmoid(chosen: Completions, rejected: Completions, *, beta: float, label_smoothing: float = 0.0) -> PairLosses:
    """DPO: ``- log σ(z)``, z = β (h_c - h_r) (Rafailov et al. 2023, eq. 7).

    With label smoothing ε, cDPO: ``- (1-ε) log σ(z) - ε log σ(-z)`` (Mitchell 2023).
    """
    c, r = beta * chosen.log_ratio, beta * rejected.log_ratio
    z = c - r
    return PairLosses(-(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z), c, r)


def robust(chosen: Completions, rejected: Completions, *, beta: float, label_smoothing: float) -> PairLosses:
    """Robust DPO: ``(- (1-ε) log σ(z) + ε log σ(-z)) / (1 - 2ε)`` (Chowdhury et al. 2024).

    An unbiased estimate of DPO's loss on clean labels, where a share ε of them was swapped.
    """
    c, r = beta * chosen.log_ratio, beta * rejected.log_ratio
    z = c - r
    difference = -(1 - label_smoothing) * logsigmoid(z) + label_smoothing * logsigmoid(-z)
    return PairLosses(difference / (1 - 2 * label_smoothing), c, r)


def ipo(chosen: Completions, rejected: Completions, *, beta: float) -> PairLosses:
    """IPO: ``(h_c/|c| - h_r/|r| - 1/(2β))²`` (Azar et al. 2023, eq. 17, on token means)."""
    c, r = chosen.log_ratio / chosen.length, rejected.log_ratio / rejected.length
    return PairLosses((c - r - 1 / (2 * beta)).square(), beta * c, beta * r)


def hinge(chosen: Completions, rejected: Completions, *, beta: float) -> PairLosses:
    """Hinge: ``max(0, 1 - β (h_c - h_r))`` (Zhao et al. 2023, SLiC-HF; Liu et al. 2023, RSO)."""
    c, r = beta * chosen.log_ratio, beta * rejected.log_ratio
    return PairLosses(torch.relu(1 - (c - r)), c, r)


def simpo(chosen: Completions, rejected: Completions, *, beta: float, target_margin: float) -> PairLosses:
    """SimPO: ``- log σ(β (log π(c)/|c| - log π(r)/|r|) - γ)`` (Meng et al. 2024)."""
    c, r = beta * chosen.mean_logprob, beta * rejected.mean_logprob
    return PairLosses(-logsigmoid(c - r - target_margin), c, r)


def orpo(chosen: Completions, rejected: Completions, *, orpo_lambda: float) -> PairLosses:
    """ORPO: ``- log π(c)/|c| - λ log σ(log odds(c) - log odds(r))`` (Hong et al. 2024).

    The odds are p / (1 - p) with p = exp(log π(x) / |x|); log odds are the implicit reward.
    """
    c, r = log_odds(chosen.mean_logprob), log_odds(rejected.mean_logprob)
    return PairLosses(-chosen.mean_logprob - orpo_lambda * logsigmoid(c - r), c, r)


LOSSES: dict[str, Callable[..., PairLosses]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "simpo": simpo,
    "orpo": orpo,
}
"""The losses on pairs, by the name the config knows them by."""


def log_odds(logprob: Tensor) -> Tensor:
    """``log (p / (1 - p))`` of p = exp(logprob), accurate from p near 0 to p near 1."""
    logprob = logprob.clamp(max=_LARGEST_MEAN_LOGPROB)
    return logprob - log1mexp(logprob)


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for x < 0, from whichever of its two forms is accurate (Mächler 2012)."""
    near = x > -0.6931471805599453
    # Each form only sees values it is fit for: an infinite derivative times 0 would be NaN.
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def pair_up(outputs: Any, batch: Any) -> tuple[Completions, Completions]:
    """The chosen and the rejected completions of a micro-batch's pairs, matched by ``unit`` in any order.

    Raises:
        ValueError: a pair is not whole.
    """
    chosen = batch["chosen"]
    # Sorted by pair, and in a pair the chosen one first.
    order = torch.argsort(2 * batch["unit"] + (~chosen).long())
    first, second = order[0::2], order[1::2]
    units = batch["unit"]
    whole = len(order) % 2 == 0 and torch.equal(units[first], units[second])
    if not whole or not bool((chosen[first] & ~chosen[second]).all()):
        raise ValueError(
            "a micro-batch has a preference pair without its other completion; "
            "sequences that share a unit must stay in one micro-batch"
        )
    logprob, length = completion_sums(outputs, batch)
    reference = batch["ref_logprob"].double() if "ref_logprob" in batch else None

    def pick(indices: Tensor) -> Completions:
        return Completions(logprob[indices], None if reference is None else reference[indices], length[indices])

    return pick(first), pick(second)


def completion_sums(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """``log π(x)`` and ``|x|`` of every sequence, float64 [B]."""
    mask = batch["loss_mask"].double()
    # torch.where, not a product alone: where the mask is 0 the log-prob is not defined by the contract.
    logprobs = torch.where(mask != 0, outputs.logprobs.double(), 0.0)
    return outputs.sum_per_sequence(logprobs * mask), outputs.sum_per_sequence(mask)
