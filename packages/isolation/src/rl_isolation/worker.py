"""A process with the user's code as the driver sees it: started, given tasks, killed, started again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from typing import Any

from rl_core import errors
from rl_core.errors import EnvironmentProblem, RLError

from rl_isolation.describe import cut, printable, shown
from rl_isolation.outcome import Outcome, ProcessEnded, Raised, Returned, TimedOut
from rl_isolation.printed import Printed
from rl_isolation.process_tree import how_it_ended
from rl_isolation.protocol import (
    ANSWER,
    BUFFER_BYTES,
    CLOSE_S,
    CONTROL_BYTES,
    DEADLINE,
    ENDED,
    IN_FILE,
    INLINE_BYTES,
    LOG,
    NONCE_BYTES,
    OUTPUT,
    SETUP_S,
    STARTED,
    TASK,
    FrameReader,
    ProtocolError,
    SendBuffer,
    file_in_memory,
)

_GRACE_S = 15.0
"""The supervisor keeps deadlines; this much later the driver does, for when user code has stopped the supervisor."""


@dataclass(frozen=True)
class Limits:
    """Of one process.

    Attributes:
        memory_bytes: its address space (Linux); None for no limit.
        answer_bytes: longest answer, as JSON.
        output_bytes: how much of what it prints and logs is forwarded, for each task.
    """

    memory_bytes: int | None = None
    answer_bytes: int = 8 << 20
    output_bytes: int = 1 << 16


@dataclass(frozen=True)
class Service:
    """What answers tasks in a process: ``reference(*arguments)`` gives a function of a task that returns plain JSON.

    Attributes:
        reference: ``"package.module:callable"``.
        arguments: pickled to the process.
        name: for messages, e.g. ``reward 'function' (rl-reward-rule)``.
        package: the distribution that ``reference`` comes from.
        not_started: what to do where the process does not start.
        not_sent: what to do where a task cannot be pickled.
        limits: of the process.
    """

    reference: str
    arguments: tuple[Any, ...]
    name: str
    package: str = ""
    not_started: str = "what it printed is above"
    not_sent: str = "keep such objects out of what is sent there"
    limits: Limits = Limits()


class Worker:
    """One process, in a fresh interpreter (never a fork of the driver, which holds threads, Ray and perhaps CUDA).

    It is started at once, and again by the first call after it was killed or ended. One task at a time; only
    :meth:`cancel` may be called from another thread.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._process: _Process | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the process with the user's code; None where there is none, or it has not said yet."""
        return self._process.pid if self._process is not None else None

    def call(self, task: Any, *, timeout_s: float) -> Outcome:
        """Pickle ``task`` to the process and wait for its outcome.

        Raises:
            EnvironmentProblem: the process does not start.
            RLError: what answers tasks cannot be built, or ``task`` cannot be pickled.
        """
        body = _pickled(self._service, task)
        if self._process is not None and self._process.gone():
            self._end()
        try:
            try:
                outcome = self._ready().exchange(body, timeout_s)
            except _EndedBeforeTask:
                self._end()
                outcome = self._ready().exchange(body, timeout_s)
        except BaseException:  # an interrupt leaves an answer in progress
            self._end()
            raise
        if isinstance(outcome, TimedOut | ProcessEnded):
            self._end()
        return outcome

    def cancel(self) -> None:
        """Kill the process; a call in another thread then returns a :class:`ProcessEnded`."""
        if (process := self._process) is not None:
            process.disconnect()

    def close(self) -> None:
        """End the process, which may first close what it holds; a later call starts it again."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _start(self) -> None:
        service = self._service
        setup = _pickled(service, (service.reference, service.package, service.arguments))
        self._process = _Process(service.name, service.limits)
        self._process.send(setup, SETUP_S)

    def _ready(self) -> _Process:
        """The process, once it has built what answers tasks."""
        if self._process is None:
            self._start()
        process, service = self._process, self._service
        assert process is not None
        if process.ready:
            return process
        match process.receive(SETUP_S):
            case Returned():
                process.ready = True
                return process
            case Raised() as raised if raised.explained:
                raise as_error(raised)
            case Raised(text=text):
                raise RLError(f"building {service.name} failed: {text}")
            case TimedOut():
                how = f"it was not ready within {SETUP_S:g} s"
            case ProcessEnded(how=how):
                pass
        raise EnvironmentProblem(f"the process of {service.name} does not start: {how}\n    {service.not_started}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


class _EndedBeforeTask(Exception):
    """The process had ended before it was given the task."""


class _Process:
    """A supervisor with its child, from start to end."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.ready = self._hung_up = False
        self.pid: int | None = None
        self._printed = Printed(name)
        self._nonce = b""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._outbox = SendBuffer(self._channel)
        longest = {ANSWER: limits.answer_bytes + NONCE_BYTES, OUTPUT: BUFFER_BYTES}
        self._frames = FrameReader(longest | dict.fromkeys((STARTED, ENDED, LOG), CONTROL_BYTES))
        self._tasks = file_in_memory()
        passed = (theirs.fileno(), self._tasks)
        with theirs:
            self._supervisor = subprocess.Popen(
                # -P: modules are found where the caller finds them, not in the working directory. -u: what is printed
                # before a hang is seen.
                [
                    *(sys.executable, "-P", "-u", "-m", "rl_isolation.supervisor"),
                    *(*map(str, passed), json.dumps(dataclasses.asdict(limits))),
                ],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=passed,
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _disconnect, self._channel, self._tasks, self._supervisor, os.getpid())

    def gone(self) -> bool:
        return self._hung_up or self._supervisor.poll() is not None

    def exchange(self, task: bytes, timeout_s: float) -> Outcome:
        """Send a task and wait for its outcome."""
        self.send(task, timeout_s)
        return self.receive(timeout_s)

    def send(self, task: bytes, timeout_s: float) -> None:
        self._nonce = os.urandom(NONCE_BYTES)
        in_file = len(task) if len(task) > INLINE_BYTES else 0
        if in_file:  # past the supervisor
            with open(self._tasks, "wb", buffering=0, closefd=False) as file:
                file.seek(0)
                rest = memoryview(task)
                while rest:
                    rest = rest[file.write(rest) :]
            task = b""
        self._flush(self._nonce, DEADLINE.pack(timeout_s), IN_FILE.pack(in_file), task)

    def receive(self, timeout_s: float) -> Outcome:
        """The outcome of the task that was sent."""
        until = time.monotonic() + timeout_s + _GRACE_S
        try:
            while (outcome := self._next(timeout_s)) is None:
                left = until - time.monotonic()
                if left <= 0:
                    self._supervisor.kill()  # user code has stopped it
                    return TimedOut(timeout_s)
                self._wait(left)
        except ProtocolError as broken:
            return ProcessEnded(str(broken), broke=True)
        except OSError:
            return ProcessEnded(f"its supervisor ended, {self._how()}")
        finally:
            self._printed.flush()
        return outcome

    def disconnect(self) -> None:
        """Tell the supervisor to kill the child; from any thread."""
        self._hung_up = True
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the child close what it holds, and wait for that."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        until = time.monotonic() + CLOSE_S + _GRACE_S
        with contextlib.suppress(OSError, ProtocolError, _EndedBeforeTask):
            while (left := until - time.monotonic()) > 0:
                if self._next(0.0) is None:
                    self._wait(left)
        self._printed.flush()
        self.kill()

    def kill(self) -> None:
        """End it now, with all that the child has started."""
        self._finalizer()
        if self.pid is not None and self._supervisor.returncode != 0:  # it was killed, and could not clean up
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _flush(self, *task: bytes) -> None:
        try:
            if task:
                self._outbox.put(TASK, *task)
            else:
                self._outbox.flush()
        except OSError:
            self._outbox.clear()  # it ended, which shows where its answer is read

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        for _, events in poll.poll(seconds * 1e3 + 1):
            if events & select.POLLOUT:
                self._flush()
            if events & ~select.POLLOUT:
                data = self._channel.recv(BUFFER_BYTES)
                if not data:
                    raise OSError("closed")
                self._frames.feed(data)

    def _next(self, timeout_s: float) -> Outcome | None:
        """The outcome, as far as it has arrived."""
        while (frame := self._frames.next()) is not None:
            kind, body = frame
            if kind == STARTED:
                self.pid = int(body)
            elif kind == OUTPUT:
                self._printed.add(body)
            elif kind == LOG:
                _log(body)
            elif kind == ENDED:
                if body[:NONCE_BYTES] != self._nonce:
                    raise _EndedBeforeTask
                told = json.loads(body[NONCE_BYTES:])
                return TimedOut(timeout_s, told["stacks"]) if told["late"] else ProcessEnded(told["how"], told["broke"])
            elif body[:NONCE_BYTES] == self._nonce and self._nonce:
                self._nonce = b""
                return _outcome(body[NONCE_BYTES:])
            else:
                raise ProtocolError("an answer to another task")
        return None

    def _how(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return how_it_ended(self._supervisor.wait(CLOSE_S))
        return "without a word"


def as_error(raised: Raised) -> RLError:
    """The error of :mod:`rl_core.errors` that was raised in the process."""
    kind = getattr(errors, raised.type, RLError)
    known = isinstance(kind, type) and issubclass(kind, RLError) and not issubclass(kind, errors.Interrupted)
    return kind(raised.message) if known else RLError(raised.message)


def _pickled(service: Service, task: Any) -> bytes:
    try:
        return pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever a class in it raises
        why = f"{service.name} runs in a process of its own, and cannot be sent there: {shown(error)}"
        raise RLError(f"{why}\n    {service.not_sent}") from error


def _outcome(body: bytes) -> Outcome:
    """The answer of the user's process; what is no answer counts as its end."""
    try:
        told = json.loads(body)
        if "value" in told:
            return Returned(told["value"])
        texts = {key: cut(str(told[key])) for key in ("message", "place", "text")}
        explained, unreadable = told.get("explained") is True, told.get("unreadable") is True
        return Raised(cut(str(told["error"])), **texts, explained=explained, unreadable=unreadable)
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"an answer that cannot be read, {type(error).__name__}") from error


def _log(body: bytes) -> None:
    try:
        name, level, text = json.loads(body)
        logging.getLogger(cut(str(name))).log(int(level), "%s", printable(str(text)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError("a log record that cannot be read") from error


def _disconnect(channel: socket.socket, tasks: int, supervisor: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork inherits the object, not the process
        return
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)
    channel.close()
    os.close(tasks)
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(2 * CLOSE_S)
        return
    supervisor.kill()  # it was stopped
    supervisor.wait()
