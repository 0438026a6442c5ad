"""Questions to a worker, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The verdict on one answer; the last two say nothing about the answer."""

    EQUAL = "equal"
    UNEQUAL = "unequal"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Question:
    """Does an answer equal the reference answer?

    Attributes:
        gold: the reference answer, without what surrounds it.
        answer: the marked answer of the completion; None to search ``completion`` for one.
        completion: the whole completion; only read where ``answer`` is None.
    """

    gold: str
    answer: str | None
    completion: str = ""
