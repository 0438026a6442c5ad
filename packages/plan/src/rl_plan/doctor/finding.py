"""A finding of ``rl doctor``, and running a check so that its own failure is one more finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One row: what was examined, how it looks, and what to do about it (empty when ok)."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def examine(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of ``look``; an exception in it becomes a warning, so that the other checks still run."""
    try:
        return list(look())
    except Exception as error:  # noqa: BLE001 - a doctor that crashes helps nobody
        text = " ".join(str(error).split())
        detail = f"could not be examined: {type(error).__name__}: {text}"
        return [Finding(check, "warn", detail, "the other findings hold; please report this one")]


def gib(size: float) -> str:
    """Bytes as GiB with one decimal."""
    return f"{size / 2**30:.1f} GiB"
