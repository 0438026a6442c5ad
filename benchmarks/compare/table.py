"""Comparisons as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from compare.ratios import BUSY, Comparison, Spread
from compare.workloads import WORKLOADS

_COLUMNS = (
    *("workload", "model", "precision", "threads"),
    *("this project", "{peer}", "speed", "target", "CPU time", "peak memory", "runs"),
)


def markdown(comparisons: Sequence[Comparison], *, peer: str) -> str:
    """A row for each, and below the table what makes rows void or doubtful."""
    head = [column.format(peer=peer) for column in _COLUMNS]
    lines = [_line(head), _line(["---"] * len(head)), *(_line(_row(c)) for c in comparisons)]
    notes = [f"**Void**: {_title(c)}: {why}." for c in comparisons for why in c.void]
    busy = [c for c in comparisons if c.foreign > BUSY]
    if busy:
        most = max(c.foreign for c in busy)
        notes.append(
            f"The machine was not quiet in {len(busy)} of {len(comparisons)} comparisons: other processes took up to "
            f"{most:.1f} CPU seconds by second."
        )
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes)


def _title(comparison: Comparison) -> str:
    case = comparison.case
    return f"{case.workload} {case.size} {case.precision}"


def _row(comparison: Comparison) -> list[str]:
    case = comparison.case
    unit = "samples/s" if WORKLOADS[case.workload].kind == "grpo" else "tokens/s"
    precision: str = case.precision
    if comparison.peer_precision != precision:
        precision += f" : {comparison.peer_precision}"
    target = comparison.target
    return [
        case.workload,
        case.size,
        precision,
        str(case.threads),
        f"{_number(comparison.ours)} {unit}",
        _number(comparison.theirs),
        "void" if comparison.void else f"**{_spread(comparison.speed)}**",
        "" if target is None else f"{target:g}{_verdict(comparison, target)}",
        _spread(comparison.cpu),
        _spread(comparison.memory),
        str(comparison.repeats),
    ]


def _verdict(comparison: Comparison, target: float) -> str:
    if comparison.void:
        return ""
    return " ✓" if comparison.speed.median >= target else " ✗"


def _spread(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.2f}×"
    return f"{spread.median:.2f}× ({spread.low:.2f}-{spread.high:.2f})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
