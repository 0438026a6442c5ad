"""Collecting problems with their positions, so that all of them are reported at once and in file order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rl_secrets.redaction import hide_known

from rl_core.config.problems import Problem

COMMAND_LINE = "command line"
MOST_SHOWN = 200
Path = tuple[str | int, ...]
"""Keys and list indices from the top of a document: ``("rewards", 0, "weight")``."""


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a file (from 1; 0 for the file as a whole), or the n-th override of the command line."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line and self.file != COMMAND_LINE else self.file


def dotted(path: Path) -> str:
    """``("rewards", 0, "weight")`` → ``"rewards.0.weight"``."""
    return ".".join(str(part) for part in path)


def _without_secrets(problem: Problem) -> Problem:
    return replace(problem, message=hide_known(problem.message), fix=hide_known(problem.fix))


class Findings:
    """Problems found so far, each once."""

    def __init__(self) -> None:
        self._found: dict[Problem, Location] = {}

    def add(
        self,
        at: Location,
        path: Path,
        message: str,
        *,
        fix: str = "",
        severity: Literal["error", "warning"] = "error",
    ) -> Problem:
        """Report ``message`` about the key ``path``, written at ``at``."""
        problem = Problem(path=dotted(path), message=message, fix=fix, severity=severity, where=str(at))
        self._found.setdefault(problem, at)
        return problem

    def extend(self, other: Findings) -> None:
        """Take over everything ``other`` found."""
        for problem, at in other._found.items():
            self._found.setdefault(problem, at)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def failed(self) -> bool:
        """Whether anything found is an error."""
        return any(problem.severity == "error" for problem in self._found)

    def in_order(self, files: Sequence[str]) -> tuple[Problem, ...]:
        """All problems (of very many the first ones, and their number): file by file in the order of ``files``, by
        line, the command line last.
        """
        rank = {file: index for index, file in enumerate(files)}

        def key(item: tuple[Problem, Location]) -> tuple[int, int]:
            at = item[1]
            return (len(rank) + 1 if at.file == COMMAND_LINE else rank.get(at.file, len(rank))), at.line

        problems = [_without_secrets(problem) for problem, _ in sorted(self._found.items(), key=key)]
        if len(problems) <= MOST_SHOWN:
            return tuple(problems)
        rest = problems[MOST_SHOWN:]
        severity: Literal["error", "warning"] = "error" if any(p.severity == "error" for p in rest) else "warning"
        return (*problems[:MOST_SHOWN], Problem("", f"and {len(rest)} more problems", severity=severity))
