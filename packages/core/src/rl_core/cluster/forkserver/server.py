"""The process that workers are forked from: ``… -m rl_core.cluster.forkserver.server LISTENER FOLDER MODULE…``.

``LISTENER`` is the number of a listening socket that it inherits. It ends when its standard input does, and removes
``FOLDER``, since a driver that was killed cannot; and at once where a process with those modules must not be forked:
then every worker is started anew.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from rl_core.cluster.forkserver.launcher import FORKED

_THREADED_BLAS = ("numpy", "scipy.linalg")
"""OpenBLAS starts threads when it is imported. It ends them before a fork, and starts them again when it needs them."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(listener: socket.socket, folder: str, modules: Sequence[str]) -> str:
    """Fork a worker for every connection until standard input ends; a worker returns from this function.

    Returns:
        why nothing can be forked, or nothing.
    """
    _end_with_parent(folder)
    reason = load(modules)
    if reason:
        return reason
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    gc.collect()
    gc.freeze()  # collecting garbage in a worker would copy every page
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(folder, ignore_errors=True)
            return ""
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            become_worker(connection)
            return ""
        connection.close()


def _end_with_parent(folder: str) -> None:
    """End with the driver while modules are imported, too; a forked worker does not inherit the death signal."""

    def end(number: int, frame: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if select.select([sys.stdin], [], [], 0)[0]:  # it has ended meanwhile
        end(signal.SIGTERM, None)


def load(modules: Sequence[str]) -> str:
    """Import what workers need; returns why this process cannot be forked, if it can't."""
    for name in _THREADED_BLAS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    harmless = _threads()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - the worker that imports it says so
            return f"{name} cannot be imported: {type(error).__name__}: {error}"
        if "ray" in sys.modules:
            return f"{name} imports Ray, which reads the settings of a worker when it is imported"
        if _threads() > harmless:
            return f"{name} starts threads ({_threads() - harmless}), which a forked process would not have"
    return ""


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def become_worker(connection: socket.socket) -> None:
    """What Ray's ``setup_worker.py`` does, but running the worker instead of starting it.

    The connection lasts as long as the worker, which ends with the process that Ray started.
    """
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(head, "little")))
    for number, descriptor in enumerate(array.array("i", ancillary[0][2])):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setpgid(0, 0)  # Ray ends the group of a worker that died
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all workers would draw the same numbers, as they never do
    connection.sendall(FORKED)
    threading.Thread(target=_end_with, args=(connection,), name="launcher", daemon=True).start()

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers import setup_worker

    known, rest = setup_worker.parser.parse_known_args(request["arguments"])
    context = RuntimeEnvContext.deserialize(known.serialized_runtime_env_context or "{}")
    os.environ.update(context.env_vars)
    sys.argv = [argument for argument in rest if argument not in ("-s", "-S")]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(connection: socket.socket) -> None:
    """Where Ray kills the process that it started, it means the worker."""
    try:
        connection.recv(1)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    listener = socket.socket(fileno=int(sys.argv[1]))
    said = main(listener, sys.argv[2], sys.argv[3:])
    if said:
        # Before the socket closes: workers that wait start when it does, and the reason stands in the log by then.
        print(f"workers are not forked, but started anew: {said}", flush=True)  # noqa: T201
        listener.close()
