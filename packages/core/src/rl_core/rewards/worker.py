"""The process of a reward with a deadline: ``python -m rl_core.rewards.worker FD``, samples in, outcomes out.

Both ends belong to one run, so they exchange pickles over a socket pair; nothing is read from a file. The process ends
with its socket, so it does not outlive the driver; while it is busy, an alarm sees to that.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from rl_core.contracts.reward import Reward
from rl_core.errors import RLError
from rl_core.plugins.references import resolve_reference
from rl_core.rewards.outcomes import ENDS_THE_RUN, Failure, attempt

START_S = 300.0
"""Longest for importing and building a reward, which may import a framework or read a model."""

GRACE_S = 5.0
"""Who asked keeps the deadline; this much later the alarm rings, for when that process is no longer there."""


def main() -> None:
    """Build the reward, then score what comes until the socket is closed."""
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever it is doing
    signal.setitimer(signal.ITIMER_REAL, START_S + GRACE_S)
    reference, package, config, timeout_s = connection.recv()
    try:
        reward: Any = resolve_reference(reference, package=package)(config)  # type: ignore[operator]
    except RLError as error:
        connection.send(_fatal(error))
        return
    except Exception as error:  # noqa: BLE001 - the plugin boundary
        connection.send(("fatal", "RLError", f"building reward {config.name!r} ({package}) failed: {error!r}"))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.send(("ready",))
    try:
        _serve(connection, reward, timeout_s)
    except EOFError:
        close = getattr(reward, "close", None)
        if close is not None:
            close()


def _serve(connection: Connection, reward: Reward, timeout_s: float) -> None:
    while True:
        samples = _received(connection)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
        try:
            answer = ("outcomes", samples if isinstance(samples, Failure) else attempt(reward, samples))
        except ENDS_THE_RUN as error:
            answer = _fatal(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        raise EOFError from None
    except Exception as error:  # noqa: BLE001 - whatever a class in a row raises when it is unpickled
        return Failure(f"runs in a process (timeout_s), and its samples cannot be read there: {error!r}")


def _fatal(error: RLError) -> tuple[Any, ...]:
    return "fatal", type(error).__name__, str(error)


if __name__ == "__main__":
    main()
