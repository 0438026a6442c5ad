"""Ports for servers that take a number and no socket, as Ray's do.

A port for a process group is held instead, see :func:`rl_core.network.held_socket`.
"""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 24_000, 32_000  # Ray gives 10,002-19,999 to workers and 23,000-23,999 to clients' servers
_ATTEMPTS = 100


def free_port() -> int:
    """A TCP port that nobody listens on, below those that systems give to outgoing connections.

    Between this call and the use of the port, a port that the system picked could become one end of some
    connection; one of these is taken only by another call of this kind, and then hardly ever.
    """
    draw = random.SystemRandom()  # not the seeded generator: two runs with one seed must not meet
    for _ in range(_ATTEMPTS):
        port = draw.randint(_FIRST, _LAST)
        if _is_free(port):
            return port
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True
