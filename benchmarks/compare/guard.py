"""The regression guard of ``hatch run nightly``: this project against a plain PyTorch loop, as ratios in one run.

The smallest model, one thread, CPU seconds instead of wall seconds: these do not change much when the machine is busy.
The floors are well below what a quiet machine shows, so that only a real loss of speed is found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from compare.ratios import Comparison, comparisons
from compare.results import Results
from compare.schedule import Schedule
from compare.systems import Systems

FLOORS: Mapping[str, float] = {"sft-10-200": 1.25, "grpo-varied": 1.1}
"""Workload → least ratio of CPU seconds, plain loop : this project."""


def guard(scratch: Path | None = None) -> int:
    """Run the short comparison and print its ratios; returns 1 where one is too low or the work was not the same."""
    with tempfile.TemporaryDirectory(prefix="compare-guard-", dir=scratch) as folder:
        results = Results.open(Path(folder) / "guard.json")
        schedule = Schedule(
            workloads=list(FLOORS), sizes=["xs"], precisions=["fp32"], threads=1, repeats=1, peer="plain"
        )
        failures = schedule.run(results, Systems(Path(folder)))
        found = comparisons(results, "plain")
    for one in found:
        floor = FLOORS[one.case.workload]
        print(f"{one.case.workload}: {one.cpu.median:.2f}× the CPU speed of a plain loop, at least {floor:g}")
    failures += problems(found)
    print("\n".join(failures))
    return 1 if failures else 0


def problems(found: list[Comparison]) -> list[str]:
    """What is wrong with the guard's comparisons."""
    wrong = [f"{one.case.workload}: {why}" for one in found for why in one.void]
    for workload, floor in FLOORS.items():
        ratios = [one.cpu.median for one in found if one.case.workload == workload]
        if not ratios:
            wrong.append(f"{workload}: nothing was compared")
        elif ratios[0] < floor:
            wrong.append(f"{workload}: {ratios[0]:.2f}× is below {floor:g}×, so something got slower")
    return wrong
