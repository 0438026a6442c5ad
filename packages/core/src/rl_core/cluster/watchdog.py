"""A thread in the driver that knows which workers live, and ends those that hang, so that nobody waits for them.

Once a second it asks every worker for a sign of life, in a concurrency group of the worker's own, and looks for the
answers a second later: it never waits for one. A worker that is busy answers; one that is stopped, or stuck in C with
Python's lock, does not. Of its end Ray tells by itself, through a call that nothing else ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_ray.diagnosis import Examination, examine_and_end
from rl_ray.joining import own_node

from rl_core.cluster.calls import actor_of
from rl_core.cluster.failures import WorkerInfo, died, hung
from rl_core.cluster.heartbeat import Heartbeat
from rl_core.errors import WorkerDied

LOOK_EVERY_S = 1.0

_PAUSED_S = 5.0
"""If this long lies between two looks, it was the driver that stood still: everybody gets a fresh deadline."""

_EXAMINATION_S = 60.0

_LAST_ANSWER_S = 2.0
"""An answer that is on its way is there within this time."""

_LAST_WORD_S = 5.0
"""Ray learns of the end of a process within some hundredths of a second."""

_NEVER_HEARD = "it has not answered since it was started"

_SILENT_S = 5 * LOOK_EVERY_S
"""A worker without a heartbeat for this long may not be able to end itself."""

logger = logging.getLogger("rl")


@dataclass
class Watched:
    """A worker under watch.

    Attributes:
        name, role, log: for messages; see :class:`rl_core.cluster.failures.WorkerInfo`.
        handle: the Ray actor.
        starting: whether it may be importing or loading, which can hold Python's lock for long.
        heartbeat, heard_at: its newest heartbeat and when (monotonic seconds of the driver) it was first seen.
        asked: a call for a heartbeat that it has not answered yet.
        until_death: a call that fails when its process is gone.
        last_word: what Ray said of its death, or empty.
        verdict: why the watchdog ended it.
        examined: set when the watchdog has looked at it; None while there is no reason to.
    """

    name: str
    role: str
    handle: Any
    log: Path
    starting: bool = True
    heartbeat: Heartbeat | None = None
    heard_at: float = field(default_factory=time.monotonic)
    asked: Any = None
    last_word: str = ""
    verdict: WorkerDied | None = None
    examined: threading.Event | None = None
    until_death: Any = field(init=False)
    actor_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.until_death = self.handle.until_death.remote()
        self.actor_id = actor_of(self.until_death)
        self.asked = self.handle.heartbeat.remote()

    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(self.name, self.role, self.heartbeat, self.log)


class Watchdog:
    """Watches workers from :meth:`watch` to :meth:`forget`.

    Args:
        heartbeat_s: a worker without a new heartbeat for this long hangs.
        start_s: the same while it imports or loads, which may hold Python's lock for long.
    """

    def __init__(self, *, heartbeat_s: float, start_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._start_s = max(start_s, heartbeat_s)
        self._watched: dict[str, Watched] = {}
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked_at = time.monotonic()

    def watch(self, worker: Watched) -> None:
        """Start to watch a worker; the first one starts the thread."""
        with self._lock:
            self._watched[worker.actor_id] = worker
            if self._thread is None:
                self._looked_at = time.monotonic()
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def starts(self, actor_ids: Sequence[str], starting: bool) -> None:
        """Workers may be importing or loading from now on, or no more."""
        with self._lock:
            for worker in filter(None, map(self._watched.get, actor_ids)):
                if worker.starting and not starting:
                    worker.heard_at = time.monotonic()  # it has just answered
                worker.starting = starting

    def forget(self, handle: Any) -> None:
        """Stop to watch a worker that is no longer needed."""
        with self._lock:
            self._watched = {key: worker for key, worker in self._watched.items() if worker.handle != handle}

    def close(self) -> None:
        """Stop watching; for workers that are gone with Ray."""
        self._ended.set()

    def end_all(self) -> None:
        """Kill every worker, those too that are not in use yet, and stop watching."""
        import ray

        self._ended.set()
        if self._thread is not None:
            self._thread.join(_EXAMINATION_S)
        for worker in list(self._watched.values()):
            silent = time.monotonic() - worker.heard_at > _SILENT_S
            if silent and worker.heartbeat is not None and not worker.last_word and worker.verdict is None:
                _look_at(worker)  # a stopped process does not hear ray.kill
            ray.kill(worker.handle)
        self._watched = {}

    def info(self, actor_id: str) -> WorkerInfo | None:
        """Who an actor is, for messages."""
        worker = self._watched.get(actor_id)
        if worker is None:
            return None
        if worker.heartbeat is None:
            self._hear([worker], within_s=_LAST_ANSWER_S)
        return worker.info

    def fallen(self, role: str) -> WorkerDied | None:
        """The death of some worker of ``role``, or None."""
        for worker in self._notice_deaths():
            if worker.role == role and (worker.last_word or worker.verdict):
                return self.death(worker.actor_id, worker.last_word, what="")
        return None

    def death(self, actor_id: str, ray_says: str, *, what: str) -> WorkerDied:
        """Why a worker is gone; waits for an examination that is under way, and asks Ray if it has said nothing yet."""
        worker = self._watched.get(actor_id)
        if worker is None:
            return WorkerDied(f"a worker process ended{' during ' + what if what else ''}: {ray_says}")
        if worker.examined is not None:
            worker.examined.wait(2 * _EXAMINATION_S)
        if worker.verdict is None:
            self._hear([worker], within_s=_LAST_ANSWER_S)
            worker.verdict = died(worker.info, ray_says or worker.last_word or _last_word(worker), what=what)
        return worker.verdict

    def end(self, actor_ids: Sequence[str], silence: str, *, what: str) -> WorkerDied | None:
        """Examine and end workers; ``silence`` says what they failed to do. Returns why the first was ended."""
        with self._lock:
            stuck = [w for w in map(self._watched.get, actor_ids) if w is not None and w.examined is None]
            for worker in stuck:
                worker.examined = threading.Event()
        for worker in stuck:
            try:
                found = _look_at(worker)
                worker.verdict = hung(worker.info, silence, found.state, found.stack, what=what)
                logger.warning("%s", worker.verdict)
            finally:
                assert worker.examined is not None
                worker.examined.set()
        return stuck[0].verdict if stuck else None

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - Ray may be going down; the watch goes on while there is one
                logger.debug("the watchdog could not look: %s: %s", type(error).__name__, error)

    def look(self) -> None:
        """Take what all have answered, ask again, and end workers whose last heartbeat is too old."""
        now = time.monotonic()
        paused = now - self._looked_at > _PAUSED_S
        workers = self._notice_deaths()
        self._hear(workers)
        for worker in workers:
            if paused:
                worker.heard_at = now
            if worker.last_word or worker.examined is not None:
                continue
            if worker.asked is None:
                worker.asked = worker.handle.heartbeat.remote()
            limit = self._start_s if worker.starting else self._heartbeat_s
            # Before the first one there is no process that could be examined.
            if worker.heartbeat is not None and now - worker.heard_at > limit:
                self.end([worker.actor_id], f"no heartbeat for {limit:g} s", what="")
        self._looked_at = time.monotonic()

    def _hear(self, workers: Sequence[Watched], *, within_s: float = 0.0) -> None:
        """Take the heartbeats that have come."""
        import ray

        with self._lock:
            asked = {w.asked: w for w in workers if w.asked is not None}
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=within_s) if asked else ([], [])
            for reference in answered:
                worker = asked[reference]
                worker.asked = None
                try:
                    worker.heartbeat = ray.get(reference, timeout=_LAST_ANSWER_S)
                    worker.heard_at = time.monotonic()
                except ray.exceptions.RayError as error:
                    logger.debug("no heartbeat of %s: %s", worker.name, error)

    def _notice_deaths(self) -> list[Watched]:
        """All workers, with ``last_word`` filled in for those that Ray knows to be dead."""
        import ray

        with self._lock:
            workers = list(self._watched.values())
            alive = {w.until_death: w for w in workers if not w.last_word}
            ended, _ = ray.wait(list(alive), num_returns=len(alive), timeout=0) if alive else ([], [])
            for reference in ended:
                try:
                    ray.get(reference, timeout=_LAST_ANSWER_S)
                except ray.exceptions.RayError as error:
                    alive[reference].last_word = str(error)
        return workers


def _last_word(worker: Watched) -> str:
    """What Ray says of a worker whose answer is missing; empty if it lives."""
    import ray

    try:
        ray.get(worker.until_death, timeout=_LAST_WORD_S)
    except ray.exceptions.GetTimeoutError:
        return ""
    except ray.exceptions.RayError as error:
        return str(error)
    return ""


def _look_at(worker: Watched) -> Examination:
    """Examine and end a worker's process, from here or by a task on its machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        if worker.heartbeat is None:
            return Examination(f"{_NEVER_HEARD}: it may hang while it opens its log or imports plugins", "")
        if worker.heartbeat.node_id == own_node():
            return examine_and_end(worker.heartbeat.pid, str(worker.log))
        there = NodeAffinitySchedulingStrategy(worker.heartbeat.node_id, soft=False)
        task = ray.remote(examine_and_end).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        return ray.get(task.remote(worker.heartbeat.pid, str(worker.log)), timeout=_EXAMINATION_S)
    except (ray.exceptions.RayError, OSError) as error:
        return Examination(f"it could not be examined: {type(error).__name__}: {error}", "")
    finally:
        ray.kill(worker.handle)
