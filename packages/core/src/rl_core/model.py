"""The controller's handle on a model: fans a batch out over a backend's ranks and merges the answers.

This is the only place that knows about data-parallel ranks, for every backend and algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.cluster.pool import WorkerPool
from rl_core.contracts.backend import LossSpec, Scale, Topology, TrainResult
from rl_core.contracts.model import ModelInfo, Role
from rl_core.errors import NonFiniteLoss
from rl_core.metrics import combine
from rl_core.zero_gradient import without_zero_gradient

PER_SEQUENCE = frozenset({"scores"})
"""Outputs with one value per sequence; all others have one per token."""


class Model:
    """One role (policy, reference, value, …) on a group of backend workers."""

    def __init__(
        self, role: Role, *, info: ModelInfo, pool: WorkerPool, workers: Sequence[Any], topology: Sequence[Topology]
    ) -> None:
        self.role = role
        self.info = info
        self._pool = pool
        self._workers = workers
        self._topology = topology
        self._dp_size = topology[0].dp_size

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Compute ``outputs`` without gradients.

        Returns:
            float32 [T] per output in the batch's order (``scores``: [B]).
        """
        parts = batch.split_balanced(self._dp_size)
        results = self._output(
            self._fan_out("forward", self._shards(batch, parts), outputs, temperature), f"{self.role.name} forward"
        )
        return {
            name: batch.scatter(parts, [r[name] for r in results], per_token=name not in PER_SEQUENCE)
            for name in outputs
        }

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """One optimizer step on the whole batch.

        Returns:
            the loss function's metrics, with ``loss``, ``grad_norm`` (before clipping) and
            ``learning_rate``; with ``zero_where`` also ``skipped_sequences_fraction``.

        Raises:
            NonFiniteLoss: nothing was updated; ``batch`` is attached for inspection.
        """
        part, scale, skipped = without_zero_gradient(
            batch, loss, scale or Scale.of(batch), auxiliary_loss=self.info.auxiliary_loss
        )
        results = self._output(self._ask("train", part, loss, scale), f"{self.role.name} train")
        metrics = reduce_metrics(results) | skipped
        if not all(r.finite for r in results):
            raise NonFiniteBatch(self.role.name, metrics, batch)
        return metrics

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """The loss and its metrics, without gradients or an update."""
        calls = self._ask("evaluate", batch, loss, scale or Scale.of(batch))
        return reduce_metrics(self._output(calls, f"{self.role.name} evaluate"))

    def weight_references(self) -> list[Any]:
        """References to the :class:`WeightBucket` objects of the current weights; the bytes stay with the workers."""
        return self.finish_stream(self.stream_weights())

    def stream_weights(self) -> list[Any]:
        """Begin to put the current weights into the object store; :meth:`finish_stream` waits for it.

        Returns:
            calls of all ranks; the first one's result is what :meth:`weight_references` returns.
        """
        return [w.stream.remote("weights", rank == 0, self.role.name) for rank, w in enumerate(self._workers)]

    def finish_stream(self, calls: Sequence[Any]) -> list[Any]:
        """The result of the first of :meth:`stream_weights`'s calls, when all have one."""
        return self._pool.get(calls, what=f"gathering the {self.role.name} weights")[0]

    def save(self, directory: str) -> None:
        """All ranks write what a bit-exact resume needs."""
        self._everywhere("save", directory)

    def is_saving(self) -> bool:
        """Whether any rank still writes in the background, for any role."""
        calls = [w.call.remote("is_saving") for w in self._workers]
        return any(self._pool.get(calls, what=f"{self.role.name} is_saving"))

    def finish_saving(self) -> None:
        """Wait until every rank has written what it was asked to."""
        calls = [w.call.remote("finish_saving") for w in self._workers]
        self._pool.get(calls, what=f"writing the {self.role.name} checkpoint")

    def restore(self, directory: str) -> None:
        """All ranks read what :meth:`save` wrote."""
        self._everywhere("restore", directory)

    def export(self, directory: str) -> None:
        """Write a Hugging Face safetensors folder (without the tokenizer)."""
        self._everywhere("export", directory)

    def _everywhere(self, method: str, directory: str) -> None:
        calls = [w.call.remote(method, self.role.name, directory) for w in self._workers]
        self._pool.get(calls, what=f"{self.role.name} {method}")

    def _ask(self, method: str, batch: SequenceBatch, loss: LossSpec, scale: Scale) -> list[Any]:
        parts = batch.split_balanced(self._dp_size)
        return self._fan_out(method, self._shards(batch, parts), loss, scale)

    def _shards(self, batch: SequenceBatch, parts: Sequence[np.ndarray]) -> list[Any]:
        """One shard per data-parallel rank, in shared memory once where several ranks read it."""
        shards = [batch] if len(parts) == 1 else [batch.select(p) for p in parts]
        if len(self._workers) == self._dp_size:
            return shards
        import ray

        return [ray.put(s) for s in shards]

    def _fan_out(self, method: str, shards: Sequence[Any], *args: Any) -> list[Any]:
        pairs = zip(self._workers, self._topology, strict=True)
        return [worker.call.remote(method, self.role.name, shards[place.dp_rank], *args) for worker, place in pairs]

    def _output(self, calls: Sequence[Any], what: str) -> list[Any]:
        """Results of the output ranks in data-parallel order; waits for all ranks, so failures anywhere surface."""
        results = self._pool.get(calls, what=what)
        chosen = [(t.dp_rank, r) for t, r in zip(self._topology, results, strict=True) if t.is_output]
        return [result for _, result in sorted(chosen, key=lambda pair: pair[0])]


class NonFiniteBatch(NonFiniteLoss):
    """A :class:`NonFiniteLoss` that carries the batch it happened on."""

    def __init__(self, role: str, metrics: Mapping[str, float], batch: SequenceBatch) -> None:
        super().__init__(
            f"the {role} loss or gradient is not finite (loss {metrics.get('loss')}, "
            f"gradient norm {metrics.get('grad_norm')}); the step was not applied"
        )
        self.batch = batch


def reduce_metrics(results: Sequence[TrainResult]) -> dict[str, float]:
    """Reduce ranks' partial metrics: sums, or max/min where the last part of the name starts with ``max_``/``min_``."""
    reduced: dict[str, float] = {}
    for result in results:
        for name, value in result.partial.items():
            if name not in reduced:
                reduced[name] = value
            else:
                reduced[name] = combine(name, reduced[name], value)
    return reduced | dict(results[0].shared)
