"""What algorithms and evaluators call: one model, wherever its ranks are."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelInfo, Role


class ModelHandle(Protocol):
    """One role (policy, reference, value, …) on all ranks of a backend.

    Each call takes the whole batch, distributes it over the data-parallel ranks, and merges what they answer.
    """

    @property
    def role(self) -> Role:
        """What the model is for."""
        ...

    @property
    def info(self) -> ModelInfo:
        """Sizes of the model as it was loaded."""
        ...

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Compute ``outputs`` without gradients.

        Returns:
            float32 [T] per output in the batch's order (``scores``: [B]).
        """
        ...

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """One optimizer step on the whole batch; computes nothing on sequences without a gradient (``zero_where``).

        Args:
            scale: what the loss is divided by; default: that of ``batch``.

        Returns:
            the loss function's metrics, with ``loss``, ``grad_norm`` (before clipping) and ``learning_rate``;
            with ``zero_where`` also ``skipped_sequences_fraction``.

        Raises:
            NonFiniteLoss: nothing was updated.
        """
        ...

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """The loss and its metrics, without gradients or an update."""
        ...
