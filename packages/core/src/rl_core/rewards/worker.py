"""The process of a reward with a deadline: ``python -m rl_core.rewards.worker SOCKET STACKS``, two descriptors.

Samples come in through the socket, outcomes and log records go out; stacks are written to the other on demand.

Both ends belong to one run, so they exchange pickles over a socket pair; nothing is read from a file. The process ends
with its socket, so it does not outlive the driver; while it is busy, an alarm sees to that.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from rl_core.contracts.reward import Reward
from rl_core.errors import RLError
from rl_core.plugins.references import resolve_reference
from rl_core.rewards.outcomes import ENDS_THE_RUN, Failure, attempt
from rl_core.rewards.stack import dump_on_signal

START_S = 300.0
"""Longest for importing and building a reward, which may import a framework or read a model."""

GRACE_S = 5.0
"""Who asked keeps the deadline; this much later the alarm rings, for when that process is no longer there."""


def main() -> None:
    """Build the reward, then score what comes until the socket is closed."""
    connection = Connection(int(sys.argv[1]))
    dump_on_signal(int(sys.argv[2]))
    driver = _Driver(connection)
    logging.basicConfig(level=logging.INFO, handlers=[driver], format="%(message)s")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever it is doing
    signal.setitimer(signal.ITIMER_REAL, START_S + GRACE_S)
    reference, package, config, timeout_s = connection.recv()
    try:
        reward: Any = resolve_reference(reference, package=package)(config)  # type: ignore[operator]
    except RLError as error:
        driver.answer(_fatal(error))
        return
    except Exception as error:  # noqa: BLE001 - the plugin boundary
        driver.answer(("fatal", "RLError", f"building reward {config.name!r} ({package}) failed: {error!r}"))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    driver.answer(("ready",))
    try:
        _serve(connection, driver, reward, timeout_s)
    except EOFError:
        close = getattr(reward, "close", None)
        if close is not None:
            close()


class _Driver(logging.Handler):
    """The driver's end of the socket: it is sent answers, and what is logged here, whichever thread logs it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def answer(self, message: tuple[Any, ...]) -> None:
        """Send ``message``, not into the middle of another."""
        with self.lock or contextlib.nullcontext():
            self._connection.send(message)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record as text, with its traceback; its handlers are the driver's."""
        with contextlib.suppress(OSError):  # the driver has closed the socket
            self._connection.send(("log", record.name, record.levelno, self.format(record)))


def _serve(connection: Connection, driver: _Driver, reward: Reward, timeout_s: float) -> None:
    while True:
        samples = _received(connection)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
        try:
            answer = ("outcomes", samples if isinstance(samples, Failure) else attempt(reward, samples))
        except ENDS_THE_RUN as error:
            answer = _fatal(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        driver.answer(answer)


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
