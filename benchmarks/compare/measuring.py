"""From what was watched to numbers, and whether two systems did the same work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from compare.watching import Watched
from compare.workloads import WARMUP_STEPS

SAME_MATHS = 1e-4
"""Where both systems compute the same: largest difference of the first loss, and relative one of the gradient norm."""


@dataclass(frozen=True)
class Measurement:
    """One run of one system; of the steps behind the warm-up where nothing else is said.

    Attributes:
        steps: measured steps.
        seconds: wall seconds from the end of the warm-up to the end of the last step, everything included.
        cpu_seconds: of all processes, in that time.
        foreign: CPU seconds of everything else on the machine in that time, by wall second; 0 on a quiet machine.
        step_seconds: of every measured step.
        tokens, trained_tokens, sequences: of every step, warm-up included.
        losses, grad_norms: likewise.
        setup_s: from the start of the process to the end of its first step.
        peak_rss, peak_pss: bytes; see :class:`compare.watching.Watched`.
        times: medians of the parts of a step, where the system reports them.
    """

    steps: int
    seconds: float
    cpu_seconds: float
    foreign: float
    step_seconds: list[float]
    tokens: list[int]
    trained_tokens: list[int]
    sequences: list[int]
    losses: list[float]
    grad_norms: list[float]
    setup_s: float
    peak_rss: int
    peak_pss: int
    times: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that are no padding, prompts included."""
        return sum(self.tokens[-self.steps :]) / self.seconds

    @property
    def sequences_per_second(self) -> float:
        return sum(self.sequences[-self.steps :]) / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Every field, and the rates."""
        return asdict(self) | {
            "tokens_per_second": self.tokens_per_second,
            "sequences_per_second": self.sequences_per_second,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


def measure(watched: Watched, reported: Sequence[Mapping[str, Any]], *, warmup: int = WARMUP_STEPS) -> Measurement:
    """A run's numbers from its marks and the lines that it reported, one for each step."""
    marks = watched.marks[warmup - 1 :]
    wall = marks[-1].wall - marks[0].wall
    cpu = marks[-1].cpu - marks[0].cpu
    names = {name for line in reported for name in line.get("times", {})}
    return Measurement(
        steps=len(marks) - 1,
        seconds=wall,
        cpu_seconds=cpu,
        foreign=max(0.0, marks[-1].machine - marks[0].machine - cpu) / wall,
        step_seconds=[b.wall - a.wall for a, b in pairwise(marks)],
        tokens=[int(line["tokens"]) for line in reported],
        trained_tokens=[int(line["trained_tokens"]) for line in reported],
        sequences=[int(line["sequences"]) for line in reported],
        losses=[float(line["loss"]) for line in reported],
        grad_norms=[float(line["grad_norm"]) for line in reported],
        setup_s=watched.setup_s,
        peak_rss=watched.peak_rss,
        peak_pss=watched.peak_pss,
        times={n: statistics.median(line["times"][n] for line in reported[warmup:]) for n in sorted(names)},
    )


def unequal_work(ours: Measurement, theirs: Measurement, *, kind: str, same_maths: bool) -> list[str]:
    """What makes a comparison of the two void; empty where both did the same.

    Args:
        kind: of the workload. A reward model trains on sequences, so there the tokens that count are all of them.
        same_maths: whether the first step's loss and gradient norm must agree (not for rollouts, which each system
            samples by itself, and not in 16 bits).
    """
    found = []
    for name in ("steps", "sequences", "tokens", *(() if kind == "rm" else ("trained_tokens",))):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other:
            found.append(f"{name.replace('_', ' ')} differ: {_short(mine)} and {_short(other)}")
    if same_maths:
        firsts = ({"loss": run.losses[0], "grad_norm": run.grad_norms[0]} for run in (ours, theirs))
        found += unequal_maths(*firsts)
    return found


def unequal_maths(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Differences of ``loss`` and ``grad_norm`` above :data:`SAME_MATHS`."""
    found = []
    mine, other = ours["loss"], theirs["loss"]
    if not abs(mine - other) <= SAME_MATHS:
        found.append(f"first loss differs: {mine:.6f} and {other:.6f}")
    mine, other = ours["grad_norm"], theirs["grad_norm"]
    if not math.isclose(mine, other, rel_tol=SAME_MATHS):
        found.append(f"first gradient norm differs: {mine:.6f} and {other:.6f}")
    return found


def _short(values: Any) -> str:
    return str(values) if not isinstance(values, list) or len(values) <= 4 else f"{values[:4]}…"
