"""A finding of the config check: what is wrong, where, and what to type next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        path: dotted path of the offending key, e.g. ``"algorithm.group_size"`` or
            ``"stages.1.algorithm.group_size"`` (the check turns it into file:line).
        message: what is wrong, with the value found.
        fix: what to type instead; may be empty.
        severity: ``error`` stops the run, ``warning`` is shown.
        where: ``file:line`` (or ``command line``); filled in by the check.
    """

    path: str
    message: str
    fix: str = ""
    severity: Literal["error", "warning"] = "error"
    where: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        key = f"{self.path}: " if self.path else ""
        return f"{head}{key}{self.message}" + (f"\n    {self.fix}" if self.fix else "")
