"""All generator replicas behind one object: balances requests, gives each the new weights, replaces dead ones."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from rl_core.batch import SequenceBatch
from rl_core.cluster.calls import CHECK_EVERY_S, actor_of
from rl_core.cluster.pool import WorkerPool
from rl_core.contracts.generation import GenerationRequest
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import RLError, WorkerDied

from rl_rollout.batch_call import BatchCall
from rl_rollout.replacements import Replacements
from rl_rollout.routing import outcomes
from rl_rollout.routing.dispatcher import Asked, Dispatcher
from rl_rollout.routing.loop_thread import LoopThread
from rl_rollout.routing.results import Results, deliver_each
from rl_rollout.routing.wire import PackedCompletions, PackedRequests
from rl_rollout.transports.object_store import StoredWeights, WeightTransport

logger = logging.getLogger("rl")

_SERVER = "rl_rollout.routing.replica_server:ReplicaServer"
_POLL_S = 10.0
"""How long a call for completions waits for the first; then another takes its place."""


class Router:
    """Generator replicas behind one stream of single requests.

    A completion depends only on its request and the weights, so which replica answers makes no difference, and a
    request whose replica died is simply asked again elsewhere. Each is answered exactly once.

    May be called from several threads and event loops. Answers come in a thread of the router's own, which keeps one
    call to each replica under way that returns whatever has finished.

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
        self._pool = pool
        self._replacements = replacements
        self._while_sampling = while_sampling
        self._lock = threading.RLock()
        self._handing_over = threading.Lock()
        self._dispatcher = Dispatcher()
        self._replicas: list[Any] = []
        self._polls: set[Any] = set()
        self._last_call: dict[Any, Any] = {}
        self._last_death: WorkerDied | None = None
        self._alone_since: float | None = None
        self._retried = 0
        self._thread: LoopThread | None = None
        self._closed = self._paused = False
        self.version = -1
        for handle in replicas:
            self._take_in(handle)

    @property
    def replicas(self) -> int:
        """Replicas that are alive."""
        return len(self._replicas)

    def submit(self, requests: Sequence[GenerationRequest], *, exact: bool = False) -> Results:
        """See :meth:`rl_core.contracts.generation.StreamingGenerator.submit`.

        Args:
            exact: requests go to replicas by their index and all at once, not by load and as there is room, so that
                where nothing else is in flight the completions are the same to the last bit each time.

        Raises:
            ValueError: an id is in flight, or comes twice.
            WorkerDied, RLError: by the iteration: no replica is left, or the generator raised.
        """
        results = Results(len(requests))
        if not requests:
            return results
        with self._lock:
            self._start()
            self._dispatcher.submit(requests, results, exact=exact)
            self._send()
        return results

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """All requests' samples in request order; see :meth:`rl_core.contracts.generator.Generator.generate`.

        Raises:
            WorkerDied: the last replica died and none came in its place, or the same requests ended three of them.
            RLError: the generator raised, or answered something else than what it was asked.
        """
        self.admit()
        call = BatchCall(requests, sampling)
        results = self.submit(call.requests, exact=True)
        try:
            return call.gather(results.all())
        except KeyboardInterrupt:
            self.abort([request.id for request in call.requests])
            raise

    def abort(self, ids: Collection[str] | None = None) -> None:
        """End requests, all by default: each comes as a completion with the tokens it has, those that no replica has
        begun with none."""
        with self._lock:
            waiting, running = self._dispatcher.withdraw(ids=None if ids is None else set(ids))
            for asked in waiting:
                asked.results.deliver([outcomes.nothing(asked.request.id)])
            self._abort_attempts(running)

    def pause(self) -> None:
        """Return when no replica is in a step; none begins another until :meth:`resume`."""
        self._paused = True  # before: that nothing comes is no failure now
        self._tell_all("pause")

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self._tell_all("resume")
        with self._lock:
            self._paused = False
            self._dispatcher.restart_clocks(time.monotonic())

    def update_weights(self, buckets: list[Any], version: int) -> None:
        """Give every replica, and those that have become ready, the weights behind ``buckets`` as ``version``."""
        self.renew_weights(StoredWeights(self._pool, buckets, self._while_sampling), version)

    def renew_weights(self, transport: WeightTransport, version: int) -> None:
        """The same with the policy's weights of this moment, as ``transport`` gives them.

        Raises:
            WorkerDied: a training worker died, or the last replica, and none came in its place.
            RLError: a generator refused the weights.
        """
        with self._handing_over:
            arrived: list[Any] = []
            if self._replacements is not None:
                arrived = self._joined(self._replacements.ready())
                self._replacements.start_missing(len(self._replicas) + len(arrived))
            self.version = version
            self._hand_over([*self._replicas, *arrived], transport)
            self._take_in_living(arrived)
        if not self._replicas:
            self._await_replacement()
        with self._lock:
            self._send()

    def admit(self) -> None:
        """Take replicas into use that have become ready since the last new weights.

        Raises:
            WorkerDied: there is no replica, and none came in time.
        """
        if self._replacements is not None:
            self._admit_ready(self._replacements.ready())
        if not self._replicas:
            self._await_replacement()

    def metrics(self) -> dict[str, float]:
        """Since the last call, but for ``rollout/replicas``; of queued requests and those in flight the peak."""
        with self._lock:
            retried, self._retried = self._retried, 0
            queued, in_flight = self._dispatcher.peaks()
        return {
            "rollout/replicas": float(self.replicas),
            "rollout/retried_requests": float(retried),
            "rollout/queued_requests": float(queued),
            "rollout/requests_in_flight": float(in_flight),
        }

    def close(self) -> None:
        """Stop the router's thread; what is in flight fails."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            self._fail(RuntimeError("the router was closed while requests were in flight"))
        if thread is not None:
            thread.close()

    def _send(self) -> None:
        for handle, part in self._dispatcher.take(time.monotonic()).items():
            packed = PackedRequests.of([attempt for attempt, _ in part], [asked.request for _, asked in part])
            self._attend(handle, "submit", packed)

    def _attend(self, handle: Any, method: str, *args: Any) -> Any:
        call = self._last_call[handle] = handle.attend.remote(_SERVER, method, *args)
        return call

    def _abort_attempts(self, running: dict[Any, list[int]]) -> None:
        for handle, attempts in running.items():
            self._attend(handle, "abort", attempts)

    def _tell_all(self, method: str) -> None:
        with self._lock:
            calls = {handle: self._attend(handle, method) for handle in self._replicas}
        for handle, call in calls.items():
            try:
                self._pool.get([call], what=method)
            except WorkerDied as death:
                self._drop(handle, death)

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError("the router is closed")
        if self._thread is None:
            self._thread = LoopThread("router", failed=self._fail)
            self._thread.begin(self._watch())
        for handle in self._replicas:
            if handle not in self._polls:
                self._polls.add(handle)
                self._thread.begin(self._poll(handle))

    async def _poll(self, handle: Any) -> None:
        """Take what a replica has finished, until it is gone. That an idle one is gone is found out when it is used."""
        while handle in self._replicas and not self._closed:
            call = self._attend(handle, "completions", _POLL_S)
            try:
                packed, failures = await call
            except Exception:  # noqa: BLE001 - explained from the call
                with self._lock:
                    self._polls.discard(handle)
                    used = bool(self._dispatcher.attempts_of(handle))
                if used and not self._closed:
                    await asyncio.to_thread(self._explain, handle, call)
                return
            self._receive(handle, packed)
            for number, attempts in failures:
                await asyncio.to_thread(self._explain, handle, self._attend(handle, "raise_failure", number), attempts)

    def _receive(self, handle: Any, packed: PackedCompletions) -> None:
        now = time.monotonic()
        waiting: list[Results] = []

        def name(attempt: int, tokens: int) -> str | None:
            asked = self._dispatcher.finished(handle, attempt, tokens, now)
            if asked is None:
                return None
            waiting.append(asked.results)
            return asked.request.id

        with self._lock:
            completions = packed.completions(name)
            if completions:
                self._send()
        deliver_each(waiting, completions)

    def _explain(self, handle: Any, call: Any, attempts: Sequence[int] | None = None) -> None:
        """Act on why a call failed: the replica is gone, or it cannot answer ``attempts``."""
        try:
            self._pool.get([call], what="generate")
        except WorkerDied as death:
            with suppress(WorkerDied):  # a training worker's, of which those who wait are told
                self._drop(handle, death)
        except RLError as error:
            with self._lock:
                attempts = attempts if attempts is not None else self._dispatcher.attempts_of(handle)
                for asked in self._dispatcher.failed(handle, attempts, time.monotonic()):
                    self._give_up(asked, error)
        except Exception as error:  # noqa: BLE001 - Ray is gone, or going
            self._fail(error)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            if self._dispatcher.busy:
                await asyncio.to_thread(self._look_after)

    def _look_after(self) -> None:
        try:
            self._pool.check()
            limit = self._pool.deadlines.call_s
            with self._lock:
                found = [] if self._paused else self._dispatcher.late(time.monotonic(), limit)
                late = {handle: self._last_call[handle] for handle in found}
            for handle, call in late.items():
                self._drop(handle, self._pool.overdue([actor_of(call)], limit, what="generate"))
            if self._replacements is not None:
                self._admit_ready(self._replacements.ready())
            if not self._replicas:
                self._check_hope()
        except RLError as error:
            self._fail(error)

    def _take_in(self, handle: Any) -> None:
        with self._lock:
            self._replicas.append(handle)
            self._alone_since = None
            self._dispatcher.add(handle)
            if self._thread is not None:
                self._start()
                self._send()

    def _drop(self, handle: Any, death: WorkerDied) -> None:
        """A replica is gone, and its requests go elsewhere."""
        if death.role == "train":
            self._fail(death)  # not the replica's death: the call only noticed that of a training worker
            raise death
        with self._lock:
            if handle not in self._replicas:
                return
            self._replicas.remove(handle)
            self._polls.discard(handle)
            self._last_call.pop(handle, None)
            self._pool.retire(handle)
            self._last_death = death
            lost = self._dispatcher.remove(handle)
            self._retried += len(lost)
            logger.warning("a generator is lost, %d go on: %s", len(self._replicas), death)
            for asked in lost:
                if asked.deaths >= outcomes.ATTEMPTS:
                    self._give_up(asked, outcomes.killer(death))
            if self._replacements is not None:
                self._replacements.start_missing(len(self._replicas))
            elif not self._replicas:
                self._fail(death)
            if not self._replicas:
                self._alone_since = time.monotonic()
            self._send()

    def _give_up(self, asked: Asked, error: BaseException) -> None:
        """One request cannot be answered, so its submission is not."""
        self._abort_attempts(self._dispatcher.forget(asked.results))
        asked.results.fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            for results in self._dispatcher.forget_all():
                results.fail(error)

    def _joined(self, handles: Sequence[Any]) -> list[Any]:
        for handle in handles:
            self._pool.add_generator(handle)
        if handles:
            logger.info("%d generators have joined, there are %d now", len(handles), len(self._replicas) + len(handles))
        return list(handles)

    def _admit_ready(self, handles: Sequence[Any]) -> None:
        """Give replicas that arrive between two updates the weights that the others have, and use them."""
        if not handles:
            return
        assert self._replacements is not None
        with self._handing_over:
            arrived = self._joined(handles)
            if self.version >= 0:
                with self._replacements.weights() as buckets:
                    self._hand_over(arrived, StoredWeights(self._pool, buckets, self._while_sampling))
            self._take_in_living(arrived)

    def _take_in_living(self, handles: Sequence[Any]) -> None:
        """Those that did not die while they were given weights."""
        for handle in handles:
            if handle in self._pool.generators:
                self._take_in(handle)

    def _hand_over(self, replicas: Sequence[Any], transport: WeightTransport) -> None:
        for handle, death in transport.give(list(replicas), self.version):
            if handle in self._replicas:
                self._drop(handle, death)
            elif death.role == "train":
                raise death
            else:
                self._pool.retire(handle)

    def _check_hope(self) -> None:
        """Raise WorkerDied where no replica can be expected any more."""
        self._alone_since = self._alone_since or time.monotonic()
        waited = time.monotonic() - self._alone_since
        outcomes.check_hope(self._replacements, self._pool.deadlines, waited_s=waited, last=self._last_death)

    def _await_replacement(self) -> None:
        """Wait until a replica is there again, with the current weights.

        Raises:
            WorkerDied: none came in time, or there is nowhere for one to come from.
        """
        if self._replacements is None:
            raise outcomes.none_left(self._last_death)
        logger.warning("no generator is left; waiting for another")
        while not self._replicas:
            self._pool.check()
            handles = self._replacements.ready(wait_s=CHECK_EVERY_S)
            if handles:
                self._admit_ready(handles)
            else:
                self._check_hope()
