"""Ray workers of the test cluster, forked from a process that has imported what they need: seconds less each.

Ray starts a worker with a command that begins with ``sys.executable``, so :func:`warm_python` gives a program to put
there while Ray is initialised: ``launcher.py`` asks ``server.py`` for a fork, and stays as the process that Ray
started. For everything else, and where there is no server, it becomes the interpreter.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SWITCH = "RL_TESTS_WARM_WORKERS"
"""Set to 0, every worker of the tests is an interpreter of its own, as a user's."""

_HERE = Path(__file__).parent
MODULES = ("rl_backend_fsdp2.backend", "rl_generation_hf.generator", "transformers.models.qwen2.modeling_qwen2")
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def warm_python(log: Path, modules: Sequence[str] = MODULES) -> Iterator[str]:
    """The program that a Ray starts warm workers with for as long as the block lasts; the server writes to ``log``."""
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux":
        yield sys.executable
        return
    with tempfile.TemporaryDirectory(prefix="rl-warm-") as folder:
        address, python = Path(folder, "socket"), Path(folder, "python")
        command = [sys.executable, "-IS", str(_HERE / "launcher.py"), str(address), sys.executable]
        python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        python.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listener, log.open("ab") as output:
            listener.bind(str(address))
            listener.listen(64)  # a worker that comes before the imports are done waits
            server = subprocess.Popen(
                # -P: modules are found where a worker finds them
                [sys.executable, "-P", str(_HERE / "server.py"), str(listener.fileno()), *modules],
                env=os.environ | _THREADS,
                stdin=subprocess.PIPE,  # it ends with this process, whatever ends that
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the tests
            )
        try:
            yield str(python)
        finally:
            server.communicate()
