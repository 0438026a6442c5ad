"""The minibatches of a training step: the sequences each computes on, and the counts its sums are divided by.

A sequence whose tokens all have an advantage of 0 adds nothing to the loss and nothing to its
gradient, so it needs no forward and no backward pass. It still counts in the normalisers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale

from rl_algo_grpo.shaping import completion_lengths

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle


@dataclass(frozen=True)
class Minibatch:
    """The input of one optimizer step.

    Attributes:
        batch: the sequences that are computed on; at least one.
        scale: counts of the whole minibatch, skipped sequences included.
    """

    batch: SequenceBatch
    scale: Scale

    @classmethod
    def of(cls, whole: SequenceBatch, *, skip: bool, always_on: bool) -> Minibatch:
        """``whole`` without the sequences that have no gradient (:func:`has_gradient`), if ``skip``.

        If none has one, the shortest completion stays: an optimizer step on a gradient of 0 still decays
        weights and moments, and has something to measure.
        """
        scale = Scale.of(whole)
        kept = has_gradient(whole, always_on=always_on) if skip else np.ones(len(whole), bool)
        if not kept.any():
            kept[_cheapest(whole)] = True
        return cls(whole if kept.all() else whole.select(kept), scale)

    @property
    def skipped(self) -> int:
        """Sequences of the minibatch that are not computed on."""
        return int(self.scale.sequences) - len(self.batch)

    def over_trained_tokens(
        self, metrics: Mapping[str, float], *, zero_where_skipped: frozenset[str]
    ) -> dict[str, float]:
        """``metrics`` of the step with means over the tokens that were computed on.

        The loss divides by the tokens of the whole minibatch. The loss itself, norms and extremes stay as they
        are, and so do those ``zero_where_skipped``: over all tokens they are what was measured.
        """
        trained = Scale.of(self.batch).tokens
        factor = self.scale.tokens / trained if trained else 1.0
        return {
            name: value * factor if _is_token_mean(name) and name not in zero_where_skipped else value
            for name, value in metrics.items()
        }


def has_gradient(batch: SequenceBatch, *, always_on: bool) -> np.ndarray:
    """bool [B]: whether a sequence can add to the gradient of the policy loss.

    Args:
        batch: token columns ``loss_mask`` and ``advantages``.
        always_on: the loss has a term without advantages (KL or entropy), so that every token in the mask counts.
    """
    counts = batch.token_columns["loss_mask"] != 0
    if not always_on:
        counts &= batch.token_columns["advantages"] != 0
    return np.bincount(batch.sequence_ids, weights=counts, minlength=len(batch)) > 0


def with_logprobs(
    minibatches: Sequence[Minibatch], sources: Mapping[str, ModelHandle], *, temperature: float
) -> list[Minibatch]:
    """``minibatches`` with a token column of log-probs per entry of ``sources`` (column → model), one pass each."""
    if not sources:
        return list(minibatches)
    together = SequenceBatch.concat(minibatch.batch for minibatch in minibatches)
    columns = {name: model.forward(together, temperature=temperature)["logprobs"] for name, model in sources.items()}
    together = together.with_columns(token=columns)
    bounds = np.cumsum([0, *(len(minibatch.batch) for minibatch in minibatches)])
    parts = [together.select(np.arange(first, end)) for first, end in pairwise(bounds)]
    return [replace(minibatch, batch=part) for minibatch, part in zip(minibatches, parts, strict=True)]


def skipped_fraction(minibatches: Sequence[Minibatch]) -> float:
    """Share of the sequences of a step that are not computed on."""
    return sum(m.skipped for m in minibatches) / sum(m.scale.sequences for m in minibatches)


def _cheapest(batch: SequenceBatch) -> int:
    """The shortest sequence, of those with tokens in the mask where there are any."""
    empty = completion_lengths(batch) == 0
    return int(np.lexsort((batch.lengths, empty))[0])


def _is_token_mean(metric: str) -> bool:
    return "/" in metric and not metric.rpartition("/")[2].startswith(("max_", "min_"))
