"""All generator replicas behind one object: balances requests, gives each the new weights, replaces dead ones."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.batch.packing import balance
from rl_core.cluster.calls import CHECK_EVERY_S, actor_of
from rl_core.cluster.pool import WorkerPool
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import RLError, WorkerDied

from rl_rollout.replacements import Replacements
from rl_rollout.transports.object_store import StoredWeights, WeightTransport

logger = logging.getLogger("rl")

ATTEMPTS = 3
"""Requests whose replicas died this many times in a row are what kills them."""


@dataclass
class _Replica:
    """A replica and the tokens it has been asked for and not yet delivered."""

    handle: Any
    outstanding: int = 0


@dataclass(frozen=True)
class _Call:
    """Requests under way: indices into the batch, on a replica, since ``started`` (monotonic seconds)."""

    replica: _Replica
    part: np.ndarray
    tokens: int
    started: float


class Router:
    """Generator replicas behind one ``generate``.

    A request's samples depend only on the request and the weights, so which replica answers makes
    no difference, and a request whose replica died is simply asked again elsewhere. Each is answered
    exactly once: an answer is taken from a living replica only, and checked to be complete.

    May be called from several threads.

    Args:
        replacements: starts replicas in the place of dead ones and where the cluster has room; without it there are
            none but ``replicas``.
        while_sampling: whether weights arrive while replicas sample.
    """

    def __init__(
        self,
        replicas: Sequence[Any],
        pool: WorkerPool,
        *,
        replacements: Replacements | None = None,
        while_sampling: bool = False,
    ) -> None:
        self._replicas = [_Replica(handle) for handle in replicas]
        self._pool = pool
        self._replacements = replacements
        self._while_sampling = while_sampling
        self._lock = threading.RLock()
        self._retried = 0
        self.version = -1

    @property
    def replicas(self) -> int:
        """Replicas that are alive."""
        return len(self._replicas)

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """All requests' samples in request order; see :meth:`rl_core.contracts.generator.Generator.generate`.

        Raises:
            WorkerDied: the last replica died and none came in its place, or the same requests ended three of them.
            RLError: the generator raised, or answered something else than what it was asked.
        """
        self._admit()
        answers: list[SequenceBatch] = []
        attempts = np.zeros(len(requests), np.int64)
        calls = self._send(requests, np.arange(len(requests)), sampling)
        done: list[Any] = []
        while calls:
            done = done or self._next_done(calls)
            reference = done.pop()
            call = calls.pop(reference)
            try:
                answer = self._pool.get([reference], what="generate")[0]
            except WorkerDied as death:
                self._lost(call, death)
                attempts[call.part] += 1
                if attempts.max() >= ATTEMPTS:
                    raise WorkerDied(
                        f"generation failed {ATTEMPTS} times on the same requests, each time with the end of the "
                        f"generator; the last time:\n{death}",
                        worker=death.worker,
                        role="generate",
                        cause=death.cause,
                    ) from death
                calls |= self._send(requests, call.part, sampling)
            else:
                answers.append(_checked(answer, call.part, n=sampling.n))
            finally:
                with self._lock:
                    call.replica.outstanding -= call.tokens
        joined = SequenceBatch.concat(answers)
        order = np.lexsort((joined.sequence_columns["sample"], joined.sequence_columns["request"]))
        return joined.share(order)

    def update_weights(self, buckets: list[Any], version: int) -> None:
        """Give every replica, and those that have become ready, the weights behind ``buckets`` as ``version``."""
        self.renew_weights(StoredWeights(self._pool, buckets, self._while_sampling), version)

    def renew_weights(self, transport: WeightTransport, version: int) -> None:
        """The same with the policy's weights of this moment, as ``transport`` gives them.

        Raises:
            WorkerDied: a training worker died, or the last replica, and none came in its place.
            RLError: a generator refused the weights.
        """
        if self._replacements is not None:
            with self._lock:
                self._add(self._replacements.ready())
                self._replacements.start_missing(len(self._replicas))
        self.version = version
        self._hand_over(list(self._replicas), transport)
        if not self._replicas:
            self._await_replacement(None)

    def metrics(self) -> dict[str, float]:
        """``rollout/replicas`` now, and ``rollout/retried_requests`` since the last call."""
        with self._lock:
            retried, self._retried = self._retried, 0
        return {"rollout/replicas": float(self.replicas), "rollout/retried_requests": float(retried)}

    def _send(self, requests: SequenceBatch, which: np.ndarray, sampling: SamplingParams) -> dict[Any, _Call]:
        """Ask for the samples of some requests, most from those replicas that have least to do."""
        if not self._replicas:
            self._await_replacement(None)
        costs = requests.lengths[which] + sampling.n * sampling.max_new_tokens
        calls: list[_Call] = []
        with self._lock:
            replicas = list(self._replicas)
            loads = [r.outstanding for r in replicas]
            for replica, chosen in zip(replicas, balance(costs, len(replicas), loads=loads), strict=True):
                if not chosen:
                    continue
                part, tokens = np.sort(which[chosen]), int(costs[chosen].sum())
                replica.outstanding += tokens
                calls.append(_Call(replica, part, tokens, time.monotonic()))
        return {c.replica.handle.call.remote("generate", requests.select(c.part), sampling): c for c in calls}

    def _next_done(self, calls: dict[Any, _Call]) -> list[Any]:
        """Calls with a result or an error: all, or those there are after a moment; ends replicas that take longer
        than a call may."""
        import ray

        limit = self._pool.deadlines.call_s
        while True:
            # Not one at a time: looking at n references n times would be the longest part of a step of many replicas.
            done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=CHECK_EVERY_S)
            if done:
                return done
            self._pool.check()
            late = [actor_of(reference) for reference, c in calls.items() if time.monotonic() - c.started > limit]
            if late:
                self._pool.overdue(late, limit, what="generate")

    def _lost(self, call: _Call, death: WorkerDied) -> None:
        """A replica is gone, and its requests go elsewhere."""
        with self._lock:
            self._retried += len(call.part)
        self._drop(call.replica, death)

    def _drop(self, replica: _Replica, death: WorkerDied) -> None:
        if death.role == "train":
            raise death  # not the replica's death: the call only noticed that of a training worker
        with self._lock:
            if replica not in self._replicas:
                return
            self._replicas.remove(replica)
            self._pool.retire(replica.handle)
            logger.warning("a generator is lost, %d go on: %s", len(self._replicas), death)
            if self._replacements is not None:
                self._replacements.start_missing(len(self._replicas))
            if not self._replicas:
                self._await_replacement(death)

    def _admit(self) -> None:
        """Take replicas into use that have become ready since the last new weights."""
        if self._replacements is None:
            return
        with self._lock:
            self._hand_over_stored(self._add(self._replacements.ready()))
            if not self._replicas:
                self._await_replacement(None)

    def _add(self, handles: Sequence[Any]) -> list[_Replica]:
        arrived = [_Replica(handle) for handle in handles]
        for replica in arrived:
            self._pool.add_generator(replica.handle)
            self._replicas.append(replica)
        if arrived:
            logger.info("%d generators have joined, there are %d now", len(arrived), len(self._replicas))
        return arrived

    def _hand_over(self, replicas: Sequence[_Replica], transport: WeightTransport) -> None:
        for handle, death in transport.give([replica.handle for replica in replicas], self.version):
            self._drop(next(replica for replica in replicas if replica.handle is handle), death)

    def _hand_over_stored(self, arrived: Sequence[_Replica]) -> None:
        """Give replicas that arrive between two updates the weights that the others have."""
        if arrived and self.version >= 0 and self._replacements is not None:
            with self._replacements.weights() as buckets:
                self._hand_over(arrived, StoredWeights(self._pool, buckets, self._while_sampling))

    def _await_replacement(self, death: WorkerDied | None) -> None:
        """Wait until a replica is there again, with the current weights.

        Raises:
            WorkerDied: none came in time, or there is nowhere for one to come from.
        """
        last = death or WorkerDied("there is no generator left\n    see the run's logs/", role="generate")
        if self._replacements is None:
            raise last
        deadlines = self._pool.deadlines
        deadline = time.monotonic() + deadlines.start_s + (deadlines.resources_s or 0.0)
        logger.warning("no generator is left; waiting for another")
        with self._lock:
            while not self._replicas:
                self._replacements.start_missing(0)
                self._pool.check()
                handles = self._replacements.ready(wait_s=CHECK_EVERY_S)
                if handles:
                    self._hand_over_stored(self._add(handles))
                elif time.monotonic() > deadline or self._replacements.exhausted:
                    raise last


def _checked(answer: SequenceBatch, part: np.ndarray, *, n: int) -> SequenceBatch:
    """``answer`` with ``request`` counting in the whole batch.

    Raises:
        RLError: a request was not answered exactly ``n`` times.
    """
    request = answer.sequence_columns["request"]
    counts = np.bincount(request, minlength=len(part)) if len(request) and request.min() >= 0 else np.zeros(len(part))
    if len(counts) != len(part) or (counts != n).any():
        raise RLError(
            f"the generator was asked for {n} samples of each of {len(part)} requests and answered "
            f"{len(answer)} sequences, of requests {np.unique(request).tolist()}; the plugin is at fault"
        )
    return answer.with_columns(sequence={"request": part[request]})
