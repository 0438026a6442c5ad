"""What Ray starts instead of the interpreter (``launcher.py ADDRESS INTERPRETER ARGUMENT…``); standard library only.

A worker is asked for at ``ADDRESS``, and this process lasts as long as the worker does. Ray's own helpers, and workers
that nobody forks, are the interpreter that was asked for.
"""

import array
import json
import os
import socket
import sys

FORKED = b"f"
"""What the server answers when the worker is there."""


def main(address: str, interpreter: str, *given: str) -> None:
    """Wait for the end of a forked worker, or become ``interpreter``."""
    arguments = list(given)
    if arguments and arguments[0].endswith("/setup_worker.py"):  # only workers with a runtime environment
        del arguments[0]
    if arguments and arguments[0].endswith("/default_worker.py"):
        try:
            with _ask(address, arguments) as connection:
                if connection.recv(1) == FORKED:
                    connection.recv(1)  # its end
                    return
        except OSError:
            pass
    os.execv(interpreter, [interpreter, *given])


def _ask(address: str, arguments: list[str]) -> socket.socket:
    """Send what makes a process: arguments, environment, directory, niceness, and its three standard files."""
    request = json.dumps(
        {
            "arguments": arguments,
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        }
    ).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    descriptors = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    connection.sendmsg([len(request).to_bytes(8, "little")], [descriptors])
    connection.sendall(request)
    return connection


if __name__ == "__main__":
    main(*sys.argv[1:])
