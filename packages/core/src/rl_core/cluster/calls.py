"""Waiting for remote calls: never past a deadline, and never for the dead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl_core.cluster.failures import WorkerInfo, recoverable
from rl_core.errors import RLError, WorkerDied

CHECK_EVERY_S = 0.5
"""How often a waiting driver looks whether those it needs are alive."""

_GRACE_S = 1.0
"""When one rank's call fails because a peer died, the peer's death is known within this time."""


@dataclass(frozen=True)
class Deadlines:
    """Longest waits in seconds: for workers to start, for one call, for a heartbeat, for room in the cluster."""

    start_s: float
    call_s: float
    heartbeat_s: float = 60.0
    resources_s: float | None = None


class WorkerDirectory(Protocol):
    """Knows the workers behind calls; see :class:`rl_core.cluster.pool.WorkerPool`. Actors have hex ids."""

    def check(self) -> None:
        """Raise WorkerDied where a worker that everybody needs is gone."""
        ...

    def info(self, actor_id: str) -> WorkerInfo | None:
        """Who an actor is."""
        ...

    def death(self, actor_id: str, ray_says: str, *, what: str) -> WorkerDied:
        """The error that explains why an actor is gone."""
        ...

    def overdue(self, actor_ids: Sequence[str], timeout_s: float, *, what: str) -> WorkerDied:
        """End workers that did not answer in time, and return the error that explains it."""
        ...


def fetch(references: Sequence[Any], timeout_s: float, *, what: str, directory: WorkerDirectory) -> list[Any]:
    """Results of remote calls; raises as soon as one fails, with the worker's own message.

    Args:
        what: the calls, for messages.

    Raises:
        WorkerDied: the process behind a call ended or hung, or failed in a way that a new start may fix.
        RLError: the call raised; its own RLError is passed on.
    """
    import ray

    try:
        return _as_they_come(references, time.monotonic() + timeout_s, directory)
    except ray.exceptions.RayTaskError as error:  # first: Ray's copy of what a worker raised is also of that class
        raise _blame(error, references, what=what, directory=directory) from error
    except ray.exceptions.GetTimeoutError:
        _, unanswered = ray.wait(list(references), num_returns=len(references), timeout=0)
        raise directory.overdue([actor_of(r) for r in unanswered], timeout_s, what=what) from None
    except ray.exceptions.RayActorError as error:
        raise _explain(error, what=what, directory=directory) from error
    except ray.exceptions.ObjectLostError as error:
        raise WorkerDied(f"a worker's answer was lost with its machine:\n{error}", cause="node") from error
    except ray.exceptions.RayError as error:
        raise _blame(error, references, what=what, directory=directory) from error


def actor_of(reference: Any) -> str:
    """Hex id of the actor that computes a call's result."""
    return reference.task_id().actor_id().hex()


def _as_they_come(references: Sequence[Any], deadline: float, directory: WorkerDirectory) -> list[Any]:
    """``ray.get`` of all until ``deadline``, looking after the workers meanwhile.

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
            directory.check()
            if time.monotonic() > deadline:
                raise ray.exceptions.GetTimeoutError("not all calls were answered in time")
    return [results[r] for r in references]


def _explain(error: Any, *, what: str, directory: WorkerDirectory) -> RLError:
    """The error for an actor that is gone, or that could not even be built."""
    if error.actor_init_failed:
        return RLError(f"a worker could not start:\n{error}")
    if error.actor_id:
        return directory.death(error.actor_id, str(error), what=what)
    return WorkerDied(
        f"a worker process ended{' during ' + what if what else ''}: {str(error).strip().splitlines()[0]}\n"
        "    see the run's logs/ for its last words; `rl resume` continues from the last checkpoint"
    )


def _blame(error: Any, references: Sequence[Any], *, what: str, directory: WorkerDirectory) -> RLError:
    """An exception that Ray brings from a worker: its own, or the consequence of another worker's death."""
    cause = getattr(error, "cause", None)  # what cannot be pickled, or not be read again, arrives as text alone
    if isinstance(cause, RLError):
        return cause
    peer = _dead_peer(references, what=what, directory=directory)
    if peer is not None:
        return peer
    try:
        directory.check()
    except WorkerDied as death:
        return death
    who = directory.info(_who_raised(references))
    title = who.title if who else "a worker"
    explained = f"{title} failed{' in ' + what if what else ''}:\n{error}"
    kind = recoverable(cause, str(error)) if isinstance(cause, BaseException) else None
    if kind is None:
        return RLError(explained)
    return WorkerDied(explained, worker=who.name if who else "", role=who.role if who else "", cause=kind)


def _who_raised(references: Sequence[Any]) -> str:
    """Hex id of the first actor whose call raised; empty for none."""
    import ray

    done, _ = ray.wait(list(references), num_returns=len(references), timeout=0)
    for reference in done:
        try:
            ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayError:
            return actor_of(reference)
    return ""


def _dead_peer(references: Sequence[Any], *, what: str, directory: WorkerDirectory) -> RLError | None:
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
            except ray.exceptions.RayActorError as error:
                return _explain(error, what=what, directory=directory)
            except ray.exceptions.RayError:
                continue
    return None
