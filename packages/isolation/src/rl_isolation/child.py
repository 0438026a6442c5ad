"""The process with the user's code: builds what answers tasks, then answers one after the other.

It is a fork of its supervisor, made before that had any thread, secret or state. It holds one socket to the supervisor
and none to the driver. An answer counts only once the supervisor has asked back and heard from the same place that gave
the answer: code that writes an answer of its own and then continues, exits or forks is found out.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import pickle
import resource
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from rl_core.errors import RLError

from rl_isolation import process_tree
from rl_isolation.describe import MESSAGE_CHARACTERS, message_of, place_of, shown
from rl_isolation.protocol import ANSWER, CHECK, DUMP_SIGNAL, HEADER, IN_FILE, LOG, TASK, read_frame

_LOG_CHARACTERS = 8000


def run(
    connection: socket.socket, *, tasks: int, output: int, stacks: int, supervisor: int, limits: dict[str, Any]
) -> None:
    """Answer tasks until the connection is closed, then close what answered them.

    Args:
        tasks: descriptor of the file that long tasks are in.
        output: descriptor that takes the place of standard output and standard error.
        stacks: descriptor for stacks.
        supervisor: process id; the child ends with it.
        limits: fields of :class:`rl_isolation.worker.Limits`.
    """
    os.setsid()  # so that code that ends its own process group ends nothing else
    process_tree.hide_memory(False)
    process_tree.end_with_parent(supervisor)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    faulthandler.register(DUMP_SIGNAL, file=stacks, all_threads=True, chain=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits["memory_bytes"] is not None:
        _limit_memory(limits["memory_bytes"])
    os.set_inheritable(tasks, False)
    channel = _Channel(connection, tasks, longest=limits["answer_bytes"])
    logging.basicConfig(level=logging.INFO, handlers=[_Forwarder(channel)], format="%(message)s")
    answer = _build(channel)
    if answer is None:
        return
    while (task := channel.task()) is not None:
        channel.answer(_result(answer, task))
    close = getattr(answer, "close", None)
    if close is not None:
        close()


def _limit_memory(most: int) -> None:
    # Elsewhere the address space of a process says nothing about the memory it uses.
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


class _Channel:
    """The socket to the supervisor; what threads write is not mixed."""

    def __init__(self, channel: socket.socket, tasks: int, *, longest: int) -> None:
        self._channel = channel
        self._tasks = tasks
        self._longest = longest
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def task(self) -> bytes | None:
        """The next task; None where there will be none."""
        frame = read_frame(self._channel)
        if frame is None or frame[0] != TASK:
            return None
        body = frame[1]
        (length,) = IN_FILE.unpack_from(body)
        return os.pread(self._tasks, length, 0) if length else body[IN_FILE.size :]

    def answer(self, result: dict[str, Any]) -> None:
        """Send a result, or the reason why it cannot be sent, and confirm it."""
        if os.getpid() != self._owner:  # the user's code forked and returned twice
            os._exit(0)
        try:
            body = json.dumps(result, allow_nan=False).encode()
        except Exception as error:  # noqa: BLE001 - a value that has no JSON, or lies about itself
            body = json.dumps(_error("", f"returned what has no JSON ({shown(error)})")).encode()
        if len(body) > self._longest:
            reason = f"returned {len(body):,} bytes as JSON; at most {self._longest:,} are read"
            body = json.dumps(_error("", reason)).encode()
        self.send(ANSWER, body)
        frame = read_frame(self._channel)
        if frame is None:
            os._exit(0)
        self.send(CHECK, frame[1])

    def send(self, kind: int, body: bytes) -> None:
        with self._lock:
            self._channel.sendall(HEADER.pack(kind, len(body)) + body)


class _Forwarder(logging.Handler):
    """Sends log records to the driver, as text."""

    def __init__(self, channel: _Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            body = json.dumps([record.name, record.levelno, self.format(record)[:_LOG_CHARACTERS]]).encode()
            self._channel.send(LOG, body)
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


def _build(channel: _Channel) -> Callable[[Any], Any] | None:
    """What answers tasks, made as the first of them says."""
    from rl_core.discovery.references import resolve_reference

    setup = channel.task()
    if setup is None:
        return None
    try:
        reference, package, arguments = pickle.loads(setup)
        found: Any = resolve_reference(reference, package=package)
        answer: Callable[[Any], Any] = found(*arguments)
    except BaseException as error:  # noqa: BLE001 - the plugin boundary
        channel.answer(_described(error))
        return None
    channel.answer({"value": None})
    return answer


def _result(answer: Callable[[Any], Any], task: bytes) -> dict[str, Any]:
    try:
        read = pickle.loads(task)
    except BaseException as error:  # noqa: BLE001 - whatever a class in it raises
        return _described(error) | {"unreadable": True}
    try:
        return {"value": answer(read)}
    except BaseException as error:  # noqa: BLE001 - even SystemExit is the task's own failure
        return _described(error)


def _described(error: BaseException) -> dict[str, Any]:
    try:
        found = _error(type(error).__name__, message_of(error), place_of(error), shown(error))
    except BaseException:  # noqa: BLE001 - no room for a description, for instance
        return _error("Exception", "it cannot be described")
    return found | {"explained": isinstance(error, RLError)}


def _error(name: str, message: str, place: str = "", text: str = "") -> dict[str, Any]:
    return {"error": name[:MESSAGE_CHARACTERS], "message": message, "place": place[:MESSAGE_CHARACTERS], "text": text}
