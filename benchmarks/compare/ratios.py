"""Comparisons of two systems: ratios of runs that were made one after the other, their median and spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from compare.measuring import Measurement, unequal_work
from compare.results import Case, Results
from compare.workloads import SIZES, WORKLOADS, Precision, System

BUSY = 0.1
"""Cores' worth of foreign work above which a run does not count as one on a quiet machine."""


@dataclass(frozen=True)
class Spread:
    """Ratios of pairs of runs, this project's better where they are above 1."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Spread:
        return cls(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Comparison:
    """All repeats of a case against a peer.

    Attributes:
        peer_precision: the one the peer was better with.
        ours, theirs: medians of what the workload is measured by (tokens/s, or samples/s for grpo).
        speed: ratio of those; cpu: of CPU seconds by step; memory: of peak resident set sizes.
        repeats: pairs of runs.
        foreign: most CPU seconds by second that other processes took from any of the runs.
        void: why the two did not do the same work.
    """

    case: Case
    peer_precision: Precision
    ours: float
    theirs: float
    speed: Spread
    cpu: Spread
    memory: Spread
    repeats: int
    foreign: float
    void: tuple[str, ...]

    @property
    def target(self) -> float | None:
        """Least ratio asked for; None where none is."""
        workload, case = WORKLOADS[self.case.workload], self.case
        if case.precision == "fp32":
            return workload.target
        return 2.0 if workload.kind in ("sft", "grpo") and case.size == "m" else None


def comparisons(results: Results, peer: System) -> list[Comparison]:
    """One for every case that both systems have runs of, in the order of :data:`WORKLOADS` and sizes."""
    found = [c for case in results.cases("rl") if (c := compare(results, case, peer)) is not None]
    order = (list(WORKLOADS), list(SIZES))
    return sorted(
        found,
        key=lambda c: (
            c.case.threads,
            c.case.precision != "fp32",
            order[0].index(c.case.workload),
            order[1].index(c.case.size),
        ),
    )


def compare(results: Results, case: Case, peer: System) -> Comparison | None:
    """This project against ``peer`` in one case, in whichever precision the peer is faster; None without a pair.

    In fp32 both use fp32. With 16 bits the peer may use either.
    """
    ours = results.all(case, "rl")
    choices: tuple[Precision, ...] = ("fp32",) if case.precision == "fp32" else ("fp32", "bf16")
    by_precision = {p: results.all(replace(case, precision=p), peer) for p in choices}
    usable = {p: runs for p, runs in by_precision.items() if set(runs) & set(ours)}
    if not usable:
        return None
    best = min(usable, key=lambda p: statistics.median(run.seconds / run.steps for run in usable[p].values()))
    return _comparison(case, ours, usable[best], best, equality=results.equality.get(f"{case.name}/{peer}"))


def _comparison(
    case: Case,
    ours: Mapping[int, Measurement],
    theirs: Mapping[int, Measurement],
    precision: Precision,
    *,
    equality: list[str] | None,
) -> Comparison:
    kind = WORKLOADS[case.workload].kind
    pairs = [(ours[i], theirs[i]) for i in sorted(set(ours) & set(theirs))]
    fp32 = case.precision == "fp32"
    void = {w for pair in pairs for w in unequal_work(*pair, kind=kind, same_maths=fp32 and kind != "grpo")}
    if kind == "grpo" and fp32:
        void |= {"the loss on the same completions was not compared"} if equality is None else set(equality)

    def rate(run: Measurement) -> float:
        return run.sequences_per_second if kind == "grpo" else run.tokens_per_second

    def spread(value: Callable[[Measurement], float], *, more_is_better: bool) -> Spread:
        return Spread.of([value(a) / value(b) if more_is_better else value(b) / value(a) for a, b in pairs])

    return Comparison(
        case=case,
        peer_precision=precision,
        ours=statistics.median(rate(a) for a, _ in pairs),
        theirs=statistics.median(rate(b) for _, b in pairs),
        speed=spread(rate, more_is_better=True),
        cpu=spread(lambda run: max(run.cpu_seconds, 1e-9) / run.steps, more_is_better=False),
        memory=spread(lambda run: run.peak_rss, more_is_better=False),
        repeats=len(pairs),
        foreign=max(run.foreign for pair in pairs for run in pair),
        void=tuple(sorted(void)),
    )
