"""One front door to all generator replicas: balances requests, and hands every replica the new weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.cluster.workers import UPDATES, WorkerPool
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import WorkerDied

logger = logging.getLogger(__name__)


class Router:
    """Generator replicas behind one ``generate``.

    A request's samples depend only on the request and the weights, so which replica answers makes
    no difference, and a request whose replica died is simply asked again elsewhere.

    Args:
        ahead: whether weights arrive while replicas sample.
    """

    def __init__(self, replicas: Sequence[Any], pool: WorkerPool, *, ahead: bool = False) -> None:
        self._replicas = list(replicas)
        self._pool = pool
        self._ahead = ahead
        self.version = -1

    @property
    def replicas(self) -> int:
        """Replicas that are alive."""
        return len(self._replicas)

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """All requests' samples in request order; see :meth:`rl_core.contracts.generator.Generator.generate`."""
        answers: dict[int, SequenceBatch] = {}
        waiting = np.arange(len(requests))
        while len(waiting):
            parts = [waiting[p] for p in requests.select(waiting).split_balanced(len(self._replicas)) if len(p)]
            calls = [
                replica.call.remote("generate", requests.select(part), sampling)
                for replica, part in zip(self._replicas, parts, strict=False)
            ]
            failed = []
            for replica, part, call in zip(list(self._replicas), parts, calls, strict=False):
                try:
                    answer = self._pool.get([call], what="generate")[0]
                except WorkerDied as death:
                    self._drop(replica, death)
                    failed.append(part)
                else:
                    column = part[answer.sequence_columns["request"]]
                    answers[int(part[0])] = answer.with_columns(sequence={"request": column})
            waiting = np.concatenate(failed) if failed else waiting[:0]
        joined = SequenceBatch.concat(list(answers.values()))
        order = np.lexsort((joined.sequence_columns["sample"], joined.sequence_columns["request"]))
        return joined.select(order)

    def update_weights(self, buckets: list[Any], version: int) -> None:
        """Give every replica the weights behind ``buckets`` (object references) as ``version``."""
        # A Ray client knows no concurrency groups; without sampling ahead nothing runs beside an update.
        methods = [
            r.call_each.options(concurrency_group=UPDATES) if self._ahead else r.call_each for r in self._replicas
        ]
        calls = [method.remote("update_weights", buckets, version) for method in methods]
        self._pool.get(calls, what="updating the generator weights")
        self.version = version

    def everywhere(self, method: str) -> None:
        """Call ``sleep`` or ``wake`` on all replicas."""
        self._pool.get([r.call.remote(method) for r in self._replicas], what=f"generator {method}")

    def _drop(self, replica: Any, death: WorkerDied) -> None:
        self._replicas.remove(replica)
        if not self._replicas:
            raise death
        logger.warning("a generator died; its requests go to the remaining %d: %s", len(self._replicas), death)
