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
class Subject:
    """The worker a message is about.

    Attributes:
        name: ``train-0``.
        role: ``train`` or ``generate``.
        beat: its last heartbeat, if there ever was one.
        log: its log file.
    """

    name: str
    role: str
    beat: Heartbeat | None
    log: Path

    @property
    def title(self) -> str:
        """``training worker train-0 (pid 4242 on node-3)``."""
        where = f" (pid {self.beat.pid} on {self.beat.host})" if self.beat else ""
        return f"{_TITLES.get(self.role, self.role)} {self.name}{where}"


def died(subject: Subject, ray_says: str, *, what: str) -> WorkerDied:
    """The error for a worker whose process ended.

    Args:
        ray_says: Ray's text, of which the known reasons are recognised.
        what: the call that found out.
    """
    cause, reason = _reason(subject.beat, ray_says)
    return _error(subject, f"ended{_during(what)}: {reason}", cause, _last_words(subject))


def hung(subject: Subject, silence: str, state: str, stack: str, *, what: str) -> WorkerDied:
    """The error for a worker that was ended because it did not answer.

    Args:
        silence: what was waited for, e.g. ``no heartbeat for 60 s``.
        state, stack: what an examination found.
    """
    doing = subject.beat.doing if subject.beat and subject.beat.doing else what
    text = f"hung{_during(doing)}, and was ended: {silence}; {state}"
    return _error(subject, text, "hung", "its stack:\n" + stack if stack else "")


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


def _reason(beat: Heartbeat | None, ray_says: str) -> tuple[str, str]:
    if "running low on memory" in ray_says or "OutOfMemory" in ray_says:
        return "memory", f"Ray ended it because its machine ran low on memory{_memory(beat)}"
    if "node has died" in ray_says or "node is dead" in ray_says or "NODE_DIED" in ray_says:
        return "node", "its machine has left the cluster"
    if beat is not None and beat.available_bytes < LOW_MEMORY * beat.total_bytes:
        return "memory", f"probably the kernel's out-of-memory killer{_memory(beat)}"
    return "died", f"its process is gone (killed by a signal, crashed, or it called exit){_memory(beat)}"


def _memory(beat: Heartbeat | None) -> str:
    if beat is None:
        return ""
    return (
        f"; at its last heartbeat it held {beat.rss_bytes / _GIB:.1f} GiB, and {beat.available_bytes / _GIB:.1f} of "
        f"{beat.total_bytes / _GIB:.1f} GiB were free"
    )


def _error(subject: Subject, text: str, cause: str, more: str) -> WorkerDied:
    indented = "".join(f"\n    {line}" for line in more.splitlines())
    return WorkerDied(
        f"{subject.title} {text}{indented}\n    its log: {subject.log}",
        worker=subject.name,
        role=subject.role,
        cause=cause,
    )


def _during(what: str) -> str:
    return f" during {what}" if what else ""


def _last_words(subject: Subject) -> str:
    """What Python wrote into the log on a fatal signal; empty where it had no time to, or the log is elsewhere."""
    try:
        lines = subject.log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pid = f"pid {subject.beat.pid} on " if subject.beat else ""
    born = max((i for i, line in enumerate(lines) if pid and pid in line), default=0)
    fatal = [i for i, line in enumerate(lines) if i >= born and line.startswith(_FATAL)]
    if not fatal:
        return ""
    dump = lines[fatal[-1] :]
    crashed = next((i for i, line in enumerate(dump) if line.startswith("Current thread")), 1)
    return "\n".join([dump[0], *dump[crashed : crashed + _FATAL_LINES]])
