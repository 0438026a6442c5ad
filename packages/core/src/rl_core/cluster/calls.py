"""Waiting for remote calls: never past a deadline, and never for the dead."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Protocol

from rl_core.cluster.failures import Subject, recoverable
from rl_core.cluster.lines import LineCall, LineEnded
from rl_core.errors import RLError, WorkerDied

CHECK_EVERY_S = 0.5
"""How often a waiting driver looks whether those it needs are alive."""

_ACTOR = re.compile(r"actor_id=([0-9a-f]+)")
"""Who raised, in Ray's text of an exception; what it raises has no other sign of it."""

_MIXED_S = 0.01
"""How often calls of one kind are looked at where those of the other are waited for."""

Echo = Callable[[], RLError | None]
"""Finds the death that made other calls fail, if there was one."""

_GRACE_S = 1.0
"""When one rank's call fails because a peer died, the peer's death is known within this time."""


@dataclass(frozen=True)
class Deadlines:
    """Longest waits in seconds: for workers to start, for one call, for a heartbeat, for room in the cluster."""

    start_s: float
    call_s: float
    heartbeat_s: float = 60.0
    resources_s: float | None = None


class Crew(Protocol):
    """Knows the workers behind calls; see :class:`rl_core.cluster.workers.WorkerPool`."""

    def check(self) -> None:
        """Raise WorkerDied where a worker that everybody needs is gone."""
        ...

    def subject(self, actor_id: str) -> Subject | None:
        """Who an actor is."""
        ...

    def death(self, actor_id: str, ray_says: str, *, what: str) -> WorkerDied:
        """The error that explains why an actor (hex id) is gone."""
        ...

    def overdue(self, actor_ids: Sequence[str], timeout_s: float, *, what: str) -> WorkerDied:
        """End workers that did not answer in time, and return the error that explains it."""
        ...


def fetch(references: Sequence[Any], timeout_s: float, *, what: str = "", crew: Crew | None = None) -> list[Any]:
    """Results of calls through Ray and by line; raises as soon as one fails, with the worker's own message.

    Raises:
        WorkerDied: the process behind a call ended or hung, or failed in a way that a new start may fix.
        RLError: the call raised (its own RLError is passed on), or, without ``crew``, took longer than ``timeout_s``.
    """
    by_line = [r for r in references if isinstance(r, LineCall)]
    if not by_line:
        return _from_ray(references, timeout_s, what=what, crew=crew)
    assert crew is not None
    found = dict(zip(by_line, _from_lines(by_line, timeout_s, what=what, crew=crew), strict=True))
    others = [r for r in references if r not in found]
    found |= zip(others, _from_ray(others, timeout_s, what=what, crew=crew) if others else [], strict=True)
    return [found[r] for r in references]


def finished(calls: Sequence[Any], *, timeout_s: float) -> list[Any]:
    """Those of ``calls`` that have a result or an error; none after ``timeout_s`` without one."""
    import ray

    by_line = {c.future: c for c in calls if isinstance(c, LineCall)}
    others = [c for c in calls if not isinstance(c, LineCall)]
    deadline = time.monotonic() + timeout_s
    while True:
        left = max(0.0, deadline - time.monotonic())
        done: list[Any] = []
        if by_line:
            patience = min(left, _MIXED_S) if others else left
            done = [by_line[f] for f in futures.wait(by_line, patience, return_when=futures.FIRST_COMPLETED).done]
        if others:
            patience = 0.0 if by_line else left
            done += ray.wait(others, num_returns=len(others), timeout=patience)[0]
        if done or time.monotonic() >= deadline:
            return done


def _from_lines(calls: Sequence[LineCall], timeout_s: float, *, what: str, crew: Crew) -> list[Any]:
    waiting = {call.future: call for call in calls}
    deadline = time.monotonic() + timeout_s
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done = futures.wait(waiting, min(left, CHECK_EVERY_S), return_when=futures.FIRST_COMPLETED).done
        for future in done:
            call, error = waiting.pop(future), future.exception()
            if isinstance(error, LineEnded):
                raise crew.death(call.actor_id, "", what=what) from error
            if error is not None:
                cause, text = error.args
                echo = functools.partial(_ended_line, calls, what=what, crew=crew)
                raise _blame(cause, text, call.actor_id, what=what, crew=crew, echo=echo) from error
        if not done:
            crew.check()
            if time.monotonic() > deadline:
                raise crew.overdue([call.actor_id for call in waiting.values()], timeout_s, what=what)
    return [call.future.result() for call in calls]


def _ended_line(calls: Sequence[LineCall], *, what: str, crew: Crew) -> RLError | None:
    """Whether another of the calls failed because its process ended."""
    deadline = time.monotonic() + _GRACE_S
    for call in calls:
        try:
            error = call.future.exception(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            continue
        if isinstance(error, LineEnded):
            return crew.death(call.actor_id, "", what=what)
    return None


def _from_ray(references: Sequence[Any], timeout_s: float, *, what: str, crew: Crew | None) -> list[Any]:
    import ray

    try:
        if crew is None:
            return ray.get(list(references), timeout=timeout_s)
        return _as_they_come(references, time.monotonic() + timeout_s, crew)
    except ray.exceptions.RayTaskError as error:
        raise _failure(error, references, what=what, crew=crew) from error
    except ray.exceptions.GetTimeoutError:
        raise _late(references, timeout_s, what=what, crew=crew) from None
    except ray.exceptions.RayActorError as error:
        raise explain(error, what=what, crew=crew) from error
    except ray.exceptions.ObjectLostError as error:
        raise WorkerDied(f"a worker's answer was lost with its machine:\n{error}", cause="node") from error


def _as_they_come(references: Sequence[Any], deadline: float, crew: Crew) -> list[Any]:
    """``ray.get`` of all until ``deadline``, looking after the crew meanwhile.

    Each is fetched once it is there: a ``ray.get`` that is given up and tried again would begin a large transfer anew.
    All that have come are fetched together: asking for one at a time would look at n references n times. A call that
    failed is noticed ``CHECK_EVERY_S`` later at most, although others never answer.
    """
    import ray

    results: dict[Any, Any] = {}
    waiting = list(references)
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(left, CHECK_EVERY_S), fetch_local=False)
        if done:
            results |= zip(done, ray.get(done, timeout=max(left, CHECK_EVERY_S)), strict=True)
        else:
            crew.check()
            if time.monotonic() > deadline:
                raise ray.exceptions.GetTimeoutError("not all calls were answered in time")
    return [results[r] for r in references]


def explain(error: Any, *, what: str, crew: Crew | None) -> RLError:
    """The error for an actor that is gone, or that could not even be built."""
    if error.actor_init_failed:
        return RLError(f"a worker could not start:\n{error}")
    if crew is not None and error.actor_id:
        return crew.death(error.actor_id, str(error), what=what)
    return WorkerDied(
        f"a worker process ended{' during ' + what if what else ''}: {str(error).strip().splitlines()[0]}\n"
        "    see the run's logs/ for its last words; `rl resume` continues from the last checkpoint"
    )


def actor_id_of(handle: Any) -> str:
    """Hex id of an actor."""
    return handle._actor_id.hex()


def actor_of(reference: Any) -> str:
    """Hex id of the actor that computes a call's result."""
    return reference.task_id().actor_id().hex()


def _late(references: Sequence[Any], timeout_s: float, *, what: str, crew: Crew | None) -> RLError:
    import ray

    if crew is None:
        return RLError(
            f"a worker did not answer within {timeout_s:g} s{' in ' + what if what else ''}\n"
            "    raise run.worker_timeout_s if the work really takes that long; see the run's logs/ otherwise"
        )
    _, unanswered = ray.wait(list(references), num_returns=len(references), timeout=0)
    return crew.overdue([actor_of(r) for r in unanswered], timeout_s, what=what)


def _failure(error: Any, references: Sequence[Any], *, what: str, crew: Crew | None) -> RLError:
    """An exception that Ray brings from a worker."""
    cause = error.cause if isinstance(error.cause, BaseException) else None
    actor = _ACTOR.search(str(error))
    echo = None if crew is None else functools.partial(_dead_peer, references, what=what, crew=crew)
    return _blame(cause, str(error), actor[1] if actor else "", what=what, crew=crew, echo=echo)


def _blame(
    cause: BaseException | None, text: str, actor_id: str, *, what: str, crew: Crew | None, echo: Echo | None
) -> RLError:
    """An exception in a worker: its own, or the echo of another worker's death.

    Args:
        cause: what was raised, as far as it could be sent.
        text: it with its traceback.
        actor_id: hex id of the worker, or empty.
        echo: looks for the other worker's death; where there is a ``crew``.
    """
    if isinstance(cause, RLError):
        return cause
    if crew is not None and echo is not None:
        other = echo()
        if other is not None:
            return other
        try:
            crew.check()
        except WorkerDied as death:
            return death
    who = crew.subject(actor_id) if crew is not None and actor_id else None
    title = who.title if who else "a worker"
    explained = f"{title} failed{' in ' + what if what else ''}:\n{text}"
    kind = recoverable(cause, text) if cause is not None else None
    if kind is None:
        return RLError(explained)
    return WorkerDied(explained, worker=who.name if who else "", role=who.role if who else "", cause=kind)


def _dead_peer(references: Sequence[Any], *, what: str, crew: Crew) -> RLError | None:
    """Whether another of the calls failed because its process ended."""
    import ray

    if len(references) < 2:
        return None
    deadline = time.monotonic() + _GRACE_S
    waiting = list(references)
    while waiting and time.monotonic() < deadline:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        for reference in done:
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError:
                continue
            except ray.exceptions.RayActorError as error:
                return explain(error, what=what, crew=crew)
            except ray.exceptions.ObjectLostError:
                continue
    return None
