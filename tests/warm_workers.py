"""Ray workers of the test cluster, forked from a process that has imported what all of them import.

A Ray worker is an interpreter started anew, twice, that then imports torch and transformers: five seconds of
processor time, for each of the hundreds of workers of the suite. Here the raylet's start command reaches, through
``warm_worker_start.py``, a process that has done the imports and forks. Runs that start a Ray of their own, and those
of ``test_cluster.py``, start workers as users' runs do.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTS = ("rl_backend_fsdp2.backend", "rl_generation_hf.generator", "transformers.models.qwen2.modeling_qwen2")
"""Nothing that imports Ray: it reads its settings, an authentication token among them, when it is imported."""


@contextmanager
def warm_workers(folder: Path) -> Iterator[None]:
    """A Ray that is initialised inside the block starts its workers by forking, for as long as this process lives."""
    address, start = folder / "socket", folder / "python"
    script = Path(__file__).with_name("warm_worker_start.py")
    start.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "{address}" "{sys.executable}" "$@"\n')
    start.chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, address], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    if not server.stdout or server.stdout.readline() != b"ready\n":
        raise RuntimeError("the process that Ray workers are forked from did not start")
    real, sys.executable = sys.executable, str(start)  # the command Ray starts workers with begins with it
    try:
        yield
    finally:
        sys.executable = real


def main(address: str) -> None:
    """Fork a worker for every connection until standard input ends; a worker returns from this function."""
    for name in IMPORTS:
        importlib.import_module(name)
    if "ray" in sys.modules:
        raise RuntimeError(f"one of {IMPORTS} imports Ray")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become_worker(connection)
            return
        connection.close()


def become_worker(connection: socket.socket) -> None:
    """What ``ray/_private/workers/setup_worker.py`` does, but running the worker instead of starting it.

    The connection stays open as long as the worker lives; the process that the raylet started waits for its end.
    """
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(head, "little")))
    for number, descriptor in enumerate(array.array("i", ancillary[0][2])):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers import setup_worker

    known, rest = setup_worker.parser.parse_known_args(request["arguments"])
    context = RuntimeEnvContext.deserialize(known.serialized_runtime_env_context or "{}")
    os.environ.update(context.env_vars)
    sys.argv = [argument for argument in rest if argument not in ("-s", "-S")]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
