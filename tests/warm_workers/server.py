"""The process that workers are forked from: ``server.py LISTENER MODULE…``; it ends when its standard input does.

``LISTENER`` is the number of a listening socket that it inherits. The modules must start no thread and not import Ray,
which reads the settings of a worker when it is imported.
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
import sys
import threading


def main(listener: socket.socket) -> None:
    """Fork a worker for every connection; a worker returns from this function when it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    gc.collect()
    gc.freeze()  # collecting garbage in a worker would copy every page
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            become_worker(connection)
            return
        connection.close()


def become_worker(connection: socket.socket) -> None:
    """Run what the launcher was started with. The connection lasts as long as this process."""
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    with connection.makefile("rb") as stream:
        arguments, environment, directory, niceness = json.loads(stream.read(int.from_bytes(head, "little")))
    for number, descriptor in enumerate(array.array("i", ancillary[0][2])):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends the group of a worker that died
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    sys.modules["numpy"].random.seed()  # else all workers would draw the same numbers
    connection.sendall(b"\n")
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    sys.argv = list(arguments)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(connection: socket.socket) -> None:
    """Where Ray kills the process that it started, it means the worker."""
    try:
        connection.recv(1)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    main(socket.socket(fileno=int(sys.argv[1])))
