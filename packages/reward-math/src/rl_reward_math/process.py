"""One worker process as its owner sees it: started, asked, killed; no call waits for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from rl_reward_math.verdict import Question, Verdict

_READ_BYTES = 1 << 16
_ERROR_BYTES = 2000


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is started with; see :class:`rl_reward_math.config.MathConfig`."""

    timeout_s: float
    memory_mb: int | None = None
    float_rounding: int | None = None

    def arguments(self) -> list[str]:
        """The command line of the worker module."""
        pairs = (
            ("--timeout-s", self.timeout_s),
            ("--memory-mb", self.memory_mb),
            ("--float-rounding", self.float_rounding),
        )
        return [f"{name}={value}" for name, value in pairs if value is not None]


class WorkerProcess:
    """A fresh interpreter, never a fork: the caller may hold threads, locks, Ray and CUDA.

    Attributes:
        ready: it has imported everything and takes questions.
        index: position of the question it is working on, None while idle.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.ready = False
        self.index: int | None = None
        self._unsent = memoryview(b"")  # a view: a long text is written in many parts
        self._received = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, closed by kill()
        self._process = subprocess.Popen(
            # -P: modules are found where the caller finds them, not in the working directory.
            [sys.executable, "-P", "-W", "ignore", "-m", "rl_reward_math.worker", *options.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.input = self._process.stdin.fileno()
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.input, False)
        os.set_blocking(self.output, False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def unsent(self) -> bool:
        """Whether part of the question still has to be written."""
        return bool(self._unsent)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, index: int, question: Question) -> None:
        """Give an idle worker its next question."""
        self.index = index
        self._unsent = memoryview(json.dumps(dataclasses.asdict(question)).encode() + b"\n")
        self.write()

    def write(self) -> None:
        """Write as much of the question as fits in the pipe."""
        try:
            self._unsent = self._unsent[os.write(self.input, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it died; the end of its output tells
            self._unsent = memoryview(b"")

    def read(self) -> Verdict | None:
        """What it replied; None if there is no complete reply yet or it only became ready.

        Raises:
            EOFError: the process ended or broke the protocol; it has to be killed.
        """
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise EOFError
        self._received += data
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        return self._understood(line)

    def _understood(self, line: bytes) -> Verdict | None:
        try:
            message = json.loads(line)
            if not self.ready and message == {"ready": True}:
                self.ready = True
                return None
            verdict = Verdict(message["verdict"])
        except (ValueError, TypeError, KeyError) as error:
            raise EOFError from error
        self.index = None
        return verdict

    def kill(self) -> str:
        """End the process, now and whatever it is doing; returns how it ended, with the end of its error output."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # flushing to a process that is gone
                stream.close()  # type: ignore[union-attr]
        return self._how_it_ended()

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        if self._errors.closed:
            return how
        with self._errors as errors:
            errors.seek(max(errors.seek(0, os.SEEK_END) - _ERROR_BYTES, 0))
            text = errors.read().decode(errors="replace").strip()
        return f"{how}\n{text}" if text else how
