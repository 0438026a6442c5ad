"""A reward in a process of its own, which is killed at its deadline and started again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from rl_core import errors
from rl_core.contracts.reward import Sample
from rl_core.errors import EnvironmentProblem, RLError
from rl_core.rewards.outcomes import Failure, Outcome
from rl_core.rewards.stack import place_in, stacks_of
from rl_core.rewards.worker import START_S

_CLOSE_S = 5.0

logger = logging.getLogger(__name__)


class RewardProcess:
    """One reward, built in a fresh interpreter (never a fork: the caller holds threads, Ray and perhaps CUDA).

    It is started at once, so that a slow import costs no time later, and again after it was killed or died. What it
    starts itself ends with it, because it leads a process group.

    Args:
        who: how messages call the reward, e.g. ``reward 'function' (rl-reward-rule)``.
        reference: the factory, ``"package.module:Class"``.
        package: the distribution it comes from.
        config: what the factory is called with.
        timeout_s: longest that one call may take.
    """

    def __init__(self, *, who: str, reference: str, package: str, config: Any, timeout_s: float) -> None:
        self._who = who
        self._order = (reference, package, config, timeout_s)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = False
        self._stacks = ""
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def attempt(self, samples: Sequence[Sample]) -> list[Outcome] | Failure:
        """One call, as :func:`rl_core.rewards.outcomes.attempt`; a failure also where it is late or its process ends.

        Raises:
            EnvironmentProblem: the process does not start.
            RLError: building the reward failed, or it raised an error that stops the run.
        """
        if self._process is not None and self._process.poll() is not None:
            self._kill()  # it ended since the last call, and nothing was lost with it
        if self._process is None:
            self._start()
        if not self._ready:
            self._wait_until_ready()
        answer = self._exchange(list(samples), self._timeout_s)
        if answer is None:
            logger.info("%s took longer than timeout_s: %g; its stack:\n%s", self._who, self._timeout_s, self._stacks)
            return Failure(f"took longer than timeout_s: {self._timeout_s:g}{place_in(self._stacks)}", late=True)
        kind, *rest = answer
        if kind == "ended":
            return Failure(f"ended its process ({rest[0]})")
        if kind == "fatal":
            raise _as_error(*rest)
        outcomes: list[Outcome] | Failure = rest[0]
        return outcomes

    def close(self) -> None:
        """End the process, which may first close its reward; a later call starts it again."""
        if self._process is not None and self._connection is not None:
            self._connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed
                self._process.wait(_CLOSE_S)
        self._kill()

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._dump: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _kill
        passed = (theirs.fileno(), self._dump.fileno())
        with theirs:
            self._process = subprocess.Popen(
                # -P: modules are found where the caller finds them, not in the working directory. -u: what the reward
                # prints before it hangs is seen.
                [sys.executable, "-P", "-u", "-m", "rl_core.rewards.worker", *map(str, passed)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=passed,
                start_new_session=True,
            )
        self._connection, self._ready = ours, False
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())
        self._send(self._order)

    def _wait_until_ready(self) -> None:
        answer = self._exchange(None, START_S)
        if answer is None or answer[0] == "ended":
            how = f"it was not ready within {START_S:g} s" if answer is None else answer[1]
            raise EnvironmentProblem(
                f"the process of {self._who} does not start: {how}\n"
                "    what it printed is above; with timeout_s: null the reward runs in the driver"
            )
        if answer[0] == "fatal":
            self._kill()
            raise _as_error(*answer[1:])
        self._ready = True

    def _exchange(self, message: Any, patience_s: float) -> tuple[Any, ...] | None:
        """Send ``message``, if there is one, and receive the answer; None where it is late and was killed."""
        assert self._process is not None
        deadline, how = _Deadline(self._process, patience_s, self._dump), ""
        answer: tuple[Any, ...] | None = None
        try:
            if message is not None:
                self._send(message)
            answer = self._received()
        except (EOFError, OSError):
            answer = None
        finally:
            late, self._stacks = deadline.cancel(), deadline.stacks
            if late or answer is None:  # also where an interrupt left an answer under way
                how = self._kill()
        return answer if answer is not None or late else ("ended", how)

    def _received(self) -> tuple[Any, ...]:
        """The next answer; what the reward logs meanwhile is logged here."""
        assert self._connection is not None
        while (answer := self._connection.recv())[0] == "log":
            _, name, level, text = answer
            logging.getLogger(name).log(level, "%s", text)
        return answer

    def _send(self, message: Any) -> None:
        assert self._connection is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it died; the end of its answers tells
                self._connection.send(message)
        except OSError:
            raise
        except Exception as error:  # whatever a class in a row or in the config raises when it is pickled
            raise RLError(
                f"{self._who} runs in a process of its own (timeout_s), and cannot be sent there: {error!r}\n"
                "    set its timeout_s: null, which scores in the driver, or keep such objects out of rows and options"
            ) from error

    def _kill(self) -> str:
        """End the process now, with what it started; returns how it ended."""
        if self._process is None:
            return ""
        self._finalizer()
        if self._connection is not None:
            self._connection.close()
        self._dump.close()
        code = self._process.returncode
        self._process, self._connection = None, None
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


class _Deadline:
    """Kills a process group after ``seconds``, which ends every wait for an answer; unless it is cancelled.

    Attributes:
        stacks: those of the process before it was killed, which it writes into ``dump``.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float, dump: IO[bytes]) -> None:
        self.stacks = ""
        self._process = process
        self._dump = dump
        self._passed = False
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> bool:
        """Whether it was too late for that."""
        self._timer.cancel()
        self._timer.join()
        return self._passed

    def _kill(self) -> None:
        self._passed = True
        self.stacks = stacks_of(self._process.pid, self._dump)
        _kill_group(self._process.pid)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork inherits the object, not the process
        return
    _kill_group(process.pid)
    process.wait()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself
        os.killpg(pid, signal.SIGKILL)


def _as_error(name: str, message: str) -> RLError:
    """The error that was raised in the process, by the name of its class."""
    kind = getattr(errors, name, RLError)
    return kind(message) if isinstance(kind, type) and issubclass(kind, RLError) else RLError(message)
