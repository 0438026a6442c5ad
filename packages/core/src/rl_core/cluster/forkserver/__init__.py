"""Workers of a local run, forked from a process that has imported what they need while data is loaded and Ray starts.

A Ray worker is an interpreter started anew, which then imports torch and transformers: seconds of processor time, for
each worker, and all at the same time. Ray starts workers with a command that begins with ``sys.executable``; inside
:func:`instead_of_python` that is ``launcher.py``, which asks ``server.py`` for a fork and stays as the process that
Ray started. Where there is nobody to fork, it becomes the interpreter that Ray asked for: nothing is lost but time.

What is imported is what components name in ``Component.preload``.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.cluster.ray_address import ray_address
from rl_core.cluster.temporary import SOCKET_NAME_BYTES
from rl_core.training.cluster_needs import ray_needs

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig

logger = logging.getLogger(__name__)

SWITCH = "RL_FORK_WORKERS"
"""Set to 0, every worker is an interpreter of its own."""

_END_S = 5.0
"""A server that is told to end has this long."""


@contextmanager
def forkserver(config: RunConfig, logs: Path) -> Iterator[str | None]:
    """For as long as the block lasts, a process that the workers of a local run are forked from.

    Yields:
        for :func:`instead_of_python`; None where workers are started anew.
    """
    reason = _against(config)
    if reason:
        logger.info("workers are not forked, but started anew: %s", reason)
        yield None
        return
    with serving(_modules(config), threads=ray_needs(config).workers[0].threads, log=logs / "forkserver.log") as python:
        yield python


@contextmanager
def serving(modules: Sequence[str], *, threads: int, log: Path) -> Iterator[str | None]:
    """A process that has imported ``modules``, or is about to, and forks workers that compute with ``threads``.

    Yields:
        for :func:`instead_of_python`; None where a program in the temporary folder cannot be executed.
    """
    folder = Path(tempfile.mkdtemp(prefix="rl-fork-"))
    try:
        python = _python(folder)
        if len(os.fsencode(folder / "socket")) > SOCKET_NAME_BYTES:
            logger.info("workers are not forked, but started anew: the name of %s is too long for a socket", folder)
            yield None
            return
        if python is None:
            logger.info("workers are not forked, but started anew: nothing in %s can be executed", folder)
            yield None
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        server = _start(folder, modules, threads, log)
        try:
            yield python
        finally:
            _end(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def instead_of_python(python: str | None) -> Iterator[None]:
    """A Ray that is initialised inside the block starts workers with ``python``; None: as ever."""
    real = sys.executable
    sys.executable = python or real
    try:
        yield
    finally:
        sys.executable = real


def _against(config: RunConfig) -> str:
    """Why the workers of a run are not forked; empty if they are."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if sys.platform != "linux":
        return f"this is no Linux but {sys.platform}"
    if ray_address(config.stages[0].run.address) or _ray_is_there():
        return "Ray was there before"
    needed = ray_needs(config).workers
    if any(r.gpus for r in needed):
        return "they use GPUs"
    # OpenMP reads its number of threads when it is loaded.
    threads = {r.threads for r in needed} | {r.generator_threads for r in needed if r.replicas or r.max_replicas}
    if len(threads) > 1:
        return f"they use different numbers of threads ({', '.join(map(str, sorted(threads)))})"
    return "" if _modules(config) else "no component says what can be imported before (Component.preload)"


def _ray_is_there() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _modules(config: RunConfig) -> list[str]:
    hosted = [c for stage in config.stages for c in (stage.backend, stage.generator) if c is not None]
    return list(dict.fromkeys(module for choice in hosted for module in choice.component.preload))


def _python(folder: Path) -> str | None:
    """A program that Ray starts in the place of the interpreter; None where it cannot be executed."""
    python, launcher = folder / "python", Path(__file__).with_name("launcher.py")
    python.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -IS "{launcher}" "{folder / "socket"}" "{sys.executable}" "$@"\n'
    )
    python.chmod(0o700)
    # Ray splits its command at spaces; a temporary folder may be on a disk without executables.
    return str(python) if os.access(python, os.X_OK) and " " not in str(python) else None


def _start(folder: Path, modules: Sequence[str], threads: int, log: Path) -> subprocess.Popen[bytes]:
    """The server. Its socket listens already: a worker that comes too early waits."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with socket.socket(socket.AF_UNIX) as listener, log.open("ab") as output:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        # -P: modules are found where a worker finds them, not in the working directory.
        program = [sys.executable, "-P", "-m", "rl_core.cluster.forkserver.server"]
        return subprocess.Popen(
            [*program, str(listener.fileno()), str(folder), *modules],
            env=os.environ | variables,
            stdin=subprocess.PIPE,  # ends with this process, whatever ends it
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the driver
        )


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(_END_S)
    except subprocess.TimeoutExpired:  # still importing
        server.kill()
        server.wait()
