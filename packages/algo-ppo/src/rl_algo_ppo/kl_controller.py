"""The weight of the KL penalty, and its adaptation towards a target."""

from __future__ import annotations

import numpy as np
from rl_core.metrics import Metrics

_LARGEST_ERROR = 0.2
"""Relative errors count up to this much, so that one odd step moves the weight little."""


class KlController:
    """Holds β; with a target, raises it while the KL is above and lowers it while it is below.

    ``β ← β · (1 + clip((KL - target) / target, ±0.2) · sequences / horizon)`` (Ziegler et al. 2019,
    "Fine-Tuning Language Models from Human Preferences", section 2.2, and its code).

    Args:
        coefficient: β at the start.
        target: KL per sequence in nats to steer to; None keeps β as it is.
        horizon: sequences after which an error held at its bound has changed β by about 20 %.
    """

    def __init__(self, coefficient: float, *, target: float | None = None, horizon: int = 10_000) -> None:
        self.coefficient = coefficient
        self._target = target
        self._horizon = horizon

    def observe(self, kl: np.ndarray, mask: np.ndarray, *, sequences: int) -> Metrics:
        """Take in a step's KL in nats (float [T], 0 where ``mask`` is); the metrics, with the β that was used."""
        total, used = float(kl.sum()), self.coefficient
        self.update(total / sequences, sequences=sequences)
        return {
            "policy/kl_reference": total / max(int(np.count_nonzero(mask)), 1),
            "policy/kl_per_sequence": total / sequences,
            "policy/kl_coefficient": used,
        }

    def update(self, kl: float, *, sequences: int) -> None:
        """Take in the mean KL per sequence (nats) of a step of ``sequences``."""
        if self._target is None:
            return
        error = min(max(kl / self._target - 1.0, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.coefficient *= 1.0 + error * sequences / self._horizon
