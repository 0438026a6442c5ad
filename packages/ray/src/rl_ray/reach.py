"""Whether a Ray cluster answers at an address, before Ray itself is asked to join it and waits as long as it likes."""

from __future__ import annotations

import logging
import os
import socket
import time

from rl_ray.errors import RayProblem

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
# The client's side of an HTTP/2 connection (RFC 9113, 3.4): the preface and an empty SETTINGS frame.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4
_FRAME_HEADER = 9


def wait_for_answer(address: str, *, within_s: float) -> None:
    """Return as soon as a gRPC server, which every Ray head is, answers at ``host:port``.

    Other forms of address (``auto``, ``ray://…``) are left to Ray.

    Raises:
        RayProblem: nothing answers within ``within_s``.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        return
    deadline = time.monotonic() + within_s
    told = False
    while True:
        problem = _problem(host.strip("[]"), int(port), timeout_s=max(deadline - time.monotonic(), 0.1))
        if not problem:
            return
        if time.monotonic() + _PAUSE_S >= deadline:
            raise RayProblem(
                f"no Ray cluster answered at {address!r} (run.address or RAY_ADDRESS) for {within_s:g} s "
                f"(run.start_timeout_s): {problem}\n    check with: ray status --address {address}; to start Ray on "
                "this machine instead, remove the address"
            )
        if not told:
            told = True
            logger.warning("no Ray cluster answers at %s yet: %s; trying for %g s", address, problem, within_s)
        time.sleep(_PAUSE_S)


def _problem(host: str, port: int, *, timeout_s: float) -> str:
    """Why there is no gRPC server; empty where there is one."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return ""
            connection.settimeout(timeout_s)
            connection.sendall(_GREETING)
            answer = b""
            while len(answer) < _FRAME_HEADER and (part := connection.recv(_FRAME_HEADER - len(answer))):
                answer += part
    except (OSError, OverflowError, UnicodeError) as error:
        return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    is_settings = len(answer) == _FRAME_HEADER and answer[3] == _SETTINGS
    return "" if is_settings else "what listens there is no Ray cluster"
