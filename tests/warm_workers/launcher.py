"""What Ray starts in the place of the interpreter: ``launcher.py ADDRESS INTERPRETER ARGUMENT…``.

Standard library only. A worker is asked for at ``ADDRESS``, and this process lasts as long as the worker does.
"""

import array
import json
import os
import socket
import sys


def main(address: str, interpreter: str, *arguments: str) -> None:
    """Wait for the end of a forked worker, or become ``interpreter``."""
    # With a runtime environment the first argument is a program that sets it up: not for a fork.
    if arguments and arguments[0].endswith("/default_worker.py"):
        try:
            with _ask(address, arguments) as connection:
                if connection.recv(1):  # the worker is there
                    connection.recv(1)  # its end
                    return
        except OSError:
            pass
    os.execv(interpreter, [interpreter, *arguments])


def _ask(address: str, arguments: tuple[str, ...]) -> socket.socket:
    """Send what makes a process: arguments, environment, directory, niceness, and its three standard files."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    request = json.dumps([arguments, dict(os.environ), os.getcwd(), niceness]).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    connection.sendmsg([len(request).to_bytes(8, "little")], [files])
    connection.sendall(request)
    return connection


if __name__ == "__main__":
    main(*sys.argv[1:])
