"""Importing the functions that a config names, in a process with a deadline: a run would fail on them much later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rl_core.errors import ConfigError
from rl_core.functions import load_function

from rl_isolation.outcome import Outcome, ProcessEnded, Raised, Returned, TimedOut
from rl_isolation.worker import Service, Worker

IMPORT_S = 60.0
"""Longest that importing one function may take."""


def broken_functions(references: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """Import each reference as a run would, in a process of its own.

    Args:
        references: ``module:function`` or ``file.py:function``.

    Returns:
        reference → what is wrong and how to fix it; those that can be imported are absent.
    """
    worker = Worker(Service(f"{__name__}:importer", (), "the functions of the config"))
    try:
        outcomes = {reference: worker.call(reference, timeout_s=IMPORT_S) for reference in dict.fromkeys(references)}
    finally:
        worker.close()
    return {reference: found for reference, outcome in outcomes.items() if (found := _problem(reference, outcome))}


def importer() -> Callable[[str], None]:
    """What answers in that process: None, or the error that explains why a function cannot be imported."""

    def answer(reference: str) -> None:
        load_function(reference)

    return answer


def _problem(reference: str, outcome: Outcome) -> tuple[str, str] | None:
    match outcome:
        case Returned():
            return None
        case Raised(type=ConfigError.__name__, message=message):
            what, _, fix = message.partition("\n")
            return what, fix.strip()
        case TimedOut() as late:
            slow = f"{reference}: importing it takes longer than {late.timeout_s:g} s{late.place}"
            return slow, "move what takes long from the module into the function"
        case Raised() | ProcessEnded():
            return f"{reference}: importing it {outcome.reason}", ""
