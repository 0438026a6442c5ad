"""A model on a backend in this process: :class:`rl_core.model.Model` without workers, for one rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Backend, LossSpec, Scale, WorkerContext
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_core.model import NonFiniteBatch, reduce_metrics
from rl_core.zero_gradient import without_zero_gradient
from rl_ray.ports import free_port

from rl_plugin_kit.reference import from_buckets


@contextmanager
def set_up(backend: Backend) -> Iterator[Backend]:
    """``setup`` as the only rank on CPU, and ``close`` at the end of the block."""
    backend.setup(lone_worker())
    try:
        yield backend
    finally:
        backend.close()


def lone_worker() -> WorkerContext:
    """Rank 0 of 1, on CPU with one thread."""
    return WorkerContext(0, 1, "127.0.0.1", free_port())


class LocalModel:
    """One role; its methods are those that algorithms call."""

    def __init__(self, backend: Backend, role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None) -> None:
        self.role = role
        self.info: ModelInfo = backend.load(role, spec, optimizer)
        self._backend = backend

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """float32 [T] per output (``scores``: [B])."""
        return self._backend.forward(self.role.name, batch, tuple(outputs), temperature)

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """One optimizer step; raises :class:`rl_core.errors.NonFiniteLoss`."""
        part, scale, skipped = without_zero_gradient(
            batch, loss, scale or Scale.of(batch), auxiliary_loss=self.info.auxiliary_loss
        )
        result = self._backend.train(self.role.name, part, loss, scale)
        metrics = reduce_metrics([result]) | skipped
        if not result.finite:
            raise NonFiniteBatch(self.role.name, metrics, batch)
        return metrics

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """The loss and its metrics without a step."""
        return reduce_metrics([self._backend.evaluate(self.role.name, batch, loss, scale or Scale.of(batch))])

    def save(self, directory: str) -> None:
        """Written completely on return."""
        self._backend.save(self.role.name, directory)
        self._backend.finish_saving()

    def restore(self, directory: str) -> None:
        """Undo what happened since :meth:`save`."""
        self._backend.restore(self.role.name, directory)

    def weights(self) -> dict[str, np.ndarray]:
        """Hugging Face name → array."""
        return from_buckets(self._backend.weights(self.role.name))


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal names and equal bits."""
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
