"""The command line in processes that are forked from one that has imported what it imports: two seconds less a call.

What runs is `rl_core.cli.main.main`, as in the installed script. Tests of runs that start Ray themselves, or have an
environment of their own, use that script.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ranks  # noqa: F401 - says what the fork server imports


class Command:
    """A running command, used like a :class:`subprocess.Popen`.

    Args:
        folder: where its outputs are written.
        apart: whether its errors go to a file of their own; else ``stdout`` has both.
    """

    def __init__(
        self, arguments: Sequence[Any], *, cwd: Path, env: Mapping[str, str], folder: Path, apart: bool = False
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        self._arguments = [str(argument) for argument in arguments]
        self._files = (folder / "stdout.txt", folder / ("stderr.txt" if apart else "stdout.txt"))
        for file in self._files:
            file.touch()
        self._process = context.Process(target=_run, args=(self._arguments, str(cwd), dict(env), self._files))
        self._process.start()
        self.stdout = SimpleNamespace(read=self._files[0].read_text)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same as ``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout, self._files[0].read_text())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, once it has ended."""
        self.wait(timeout)
        return self._files[0].read_text(), self._files[1].read_text()

    def send_signal(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


def _run(arguments: list[str], cwd: str, env: dict[str, str], files: tuple[Path, Path]) -> None:
    gc.freeze()  # what was imported is never garbage
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, file in enumerate(files, start=1):
        written = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(written, descriptor)
        os.close(written)
    sys.argv = ["rl", *arguments]
    from rl_core.cli.main import main

    sys.exit(main())
