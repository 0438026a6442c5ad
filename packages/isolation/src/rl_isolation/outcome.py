"""Outcomes of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl_isolation.describe import one_line
from rl_isolation.stacks import place_in


@dataclass(frozen=True)
class Returned:
    """The task returned.

    Attributes:
        value: plain JSON. The user's code decides what it is: check it.
    """

    value: Any


@dataclass(frozen=True)
class Raised:
    """The task raised, or returned what cannot be sent.

    Attributes:
        type: name of the exception's class; empty where it returned what cannot be sent.
        message: its text, cut where it is long; without ``type`` what it returned.
        place: ``file:line`` it comes from, or empty.
        text: its ``repr``, cut.
        explained: it is one of :mod:`rl_core.errors`, so the message explains itself.
        unreadable: raised while the task was unpickled, before it began.
    """

    type: str
    message: str
    place: str = ""
    text: str = ""
    explained: bool = False
    unreadable: bool = False

    @property
    def reason(self) -> str:
        """What the code did, to stand after its name."""
        if not self.type:
            return self.message
        where = f" ({self.place})" if self.place else ""
        return f"raised {self.type}: {one_line(self.message)}{where}"


@dataclass(frozen=True)
class TimedOut:
    """Its deadline passed, and the process was killed with all it had started.

    Attributes:
        timeout_s: the deadline.
        stacks: of all threads of the process before it was killed, or empty.
    """

    timeout_s: float
    stacks: str = ""

    @property
    def place(self) -> str:
        """`` (file:line)`` the main thread was at, or empty."""
        found = place_in(self.stacks)
        return f" ({found})" if found else ""


@dataclass(frozen=True)
class ProcessEnded:
    """The process ended, or was ended because it broke the protocol.

    Attributes:
        how: ``exit code 3``, ``signal SIGSEGV``; of a broken protocol, what it wrote.
        broke: whether it broke the protocol.
    """

    how: str
    broke: bool = False

    @property
    def reason(self) -> str:
        """What the code did, to stand after its name."""
        if self.broke:
            return f"wrote to the connection of its own process, which was ended ({self.how})"
        return f"ended its process ({self.how})"


Outcome = Returned | Raised | TimedOut | ProcessEnded
