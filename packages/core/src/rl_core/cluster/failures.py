"""Why a worker is gone, in words: from what Ray says, its last heartbeat, its log, and the exception it raised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl_core.cluster.heartbeat import Heartbeat
from rl_core.errors import WorkerDied

LOW_MEMORY = 0.1
"""Share of a machine's memory: a process that died with less than this free was probably killed for memory."""

_GIB = 2**30
_FATAL = "Fatal Python error"
_FATAL_LINES = 12
_TITLES = {"train": "training worker", "generate": "generator"}
_PEER_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionError", "OwnerDiedError")
_PEER_WORDS = ("NCCL", "ncclSystemError", "[../third_party/gloo", "gloo::", "Connection closed by peer")
_DEVICE_WORDS = ("CUDA error", "cudaError", "device-side assert", "HIP error")


@dataclass(frozen=True)
class WorkerInfo:
    """The worker a message is about.

    Attributes:
        name: ``train-0``.
        role: ``train`` or ``generate``.
        heartbeat: its last heartbeat, if there ever was one.
        log: its log file.
    """

    name: str
    role: str
    heartbeat: Heartbeat | None
    log: Path

    @property
    def title(self) -> str:
        """``training worker train-0 (pid 4242 on node-3)``."""
        where = f" (pid {self.heartbeat.pid} on {self.heartbeat.host})" if self.heartbeat else ""
        return f"{_TITLES.get(self.role, self.role)} {self.name}{where}"


def died(worker: WorkerInfo, ray_says: str, *, what: str) -> WorkerDied:
    """The error for a worker whose process ended.

    Args:
        ray_says: Ray's text, of which the known reasons are recognised.
        what: the call that found out.
    """
    cause, reason = _reason(worker.heartbeat, ray_says)
    return _error(worker, f"ended{_during(what)}: {reason}", cause, _last_words(worker))


def hung(worker: WorkerInfo, silence: str, state: str, stack: str, *, what: str) -> WorkerDied:
    """The error for a worker that was ended because it did not answer.

    Args:
        silence: what was waited for, e.g. ``no heartbeat for 60 s``.
        state, stack: what an examination found.
    """
    doing = worker.heartbeat.doing if worker.heartbeat and worker.heartbeat.doing else what
    text = f"hung{_during(doing)}, and was ended: {silence}; {state}"
    return _error(worker, text, "hung", "its stack:\n" + stack if stack else "")


def ray_lost(reason: str) -> WorkerDied:
    """The error for whoever waits for a worker when Ray is gone."""
    return WorkerDied(f"{reason}, and all workers with it", cause="ray")


def recoverable(error: BaseException, text: str) -> str | None:
    """Whether an exception in a worker is one that starting again may fix.

    Args:
        error: what the worker raised.
        text: it with its traceback.

    Returns:
        the ``cause`` of a :class:`WorkerDied`, or None: the same would happen again.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return "device_memory"
    if "MemoryError" in names or "_ArrayMemoryError" in names:
        return "memory"
    if names & set(_PEER_ERRORS) or any(word in text for word in _PEER_WORDS):
        return "peers"
    return "died" if any(word in text for word in _DEVICE_WORDS) else None


def _reason(last: Heartbeat | None, ray_says: str) -> tuple[str, str]:
    if "running low on memory" in ray_says or "OutOfMemory" in ray_says:
        return "memory", f"Ray ended it because its machine ran low on memory{_memory(last)}"
    if "node has died" in ray_says or "node is dead" in ray_says or "NODE_DIED" in ray_says:
        return "node", "its machine has left the cluster"
    if last is not None and last.available_bytes < LOW_MEMORY * last.total_bytes:
        return "memory", f"probably the kernel's out-of-memory killer{_memory(last)}"
    return "died", f"its process is gone (killed by a signal, crashed, or it called exit){_memory(last)}"


def _memory(last: Heartbeat | None) -> str:
    if last is None:
        return ""
    return (
        f"; at its last heartbeat it held {last.rss_bytes / _GIB:.1f} GiB, and {last.available_bytes / _GIB:.1f} of "
        f"{last.total_bytes / _GIB:.1f} GiB were free"
    )


def _error(worker: WorkerInfo, text: str, cause: str, more: str) -> WorkerDied:
    indented = "".join(f"\n    {line}" for line in more.splitlines())
    return WorkerDied(
        f"{worker.title} {text}{indented}\n    its log: {worker.log}",
        worker=worker.name,
        role=worker.role,
        cause=cause,
    )


def _during(what: str) -> str:
    return f" during {what}" if what else ""


def _last_words(worker: WorkerInfo) -> str:
    """What Python wrote into the log on a fatal signal; empty where it had no time to, or the log is elsewhere."""
    try:
        lines = worker.log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pid = f"pid {worker.heartbeat.pid} on " if worker.heartbeat else ""
    born = max((i for i, line in enumerate(lines) if pid and pid in line), default=0)
    fatal = [i for i, line in enumerate(lines) if i >= born and line.startswith(_FATAL)]
    if not fatal:
        return ""
    dump = lines[fatal[-1] :]
    crashed = next((i for i, line in enumerate(dump) if line.startswith("Current thread")), 1)
    return "\n".join([dump[0], *dump[crashed : crashed + _FATAL_LINES]])
