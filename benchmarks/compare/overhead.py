"""What a GRPO step costs besides generation, forward and backward passes: everything else of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compare.results import Results
from compare.watching import Watched
from compare.workloads import WARMUP_STEPS

MOST_SHARE = {"m": 0.03}
MOST_SECONDS = {"xs": 0.025}
"""Targets, by size."""


def overhead(watched: Watched, parts: Mapping[str, float]) -> dict[str, Any]:
    """Seconds of an average step, its parts, and what is in none of them.

    Args:
        watched: of a run with the stopwatch.
        parts: seconds of all steps behind the warm-up together, by part.
    """
    marks = watched.marks[WARMUP_STEPS - 1 :]
    steps = len(marks) - 1
    step = (marks[-1].wall - marks[0].wall) / steps
    each = {name: seconds / steps for name, seconds in sorted(parts.items())}
    rest = step - sum(each.values())
    return {"step_s": step, "parts_s": each, "rest_s": rest, "share": rest / step}


def lines(results: Results) -> list[str]:
    """Markdown list items, with the targets there are."""
    found = []
    for name, one in results.overhead.items():
        size = name.split("/")[1]
        parts = ", ".join(f"{part} {1000 * seconds:.0f} ms" for part, seconds in one["parts_s"].items())
        line = f"- {name}: {1000 * one['rest_s']:.1f} ms of a step are the loop's own, **{one['share']:.1%}** ({parts})"
        if size in MOST_SHARE:
            line += f"; target at most {MOST_SHARE[size]:.0%} {_mark(one['share'] <= MOST_SHARE[size])}"
        if size in MOST_SECONDS:
            line += f"; target below {1000 * MOST_SECONDS[size]:.0f} ms {_mark(one['rest_s'] < MOST_SECONDS[size])}"
        found.append(line)
    return found


def _mark(met: bool) -> str:
    return "✓" if met else "✗"
