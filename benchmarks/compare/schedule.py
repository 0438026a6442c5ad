"""The order of a comparison: all systems of a case in turns, A B A B, what is there already left out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from compare import machine
from compare.results import Case, Results
from compare.systems import Systems
from compare.watching import SystemFailed
from compare.workloads import WORKLOADS, Precision, System

T = TypeVar("T")


@dataclass(frozen=True)
class Schedule:
    """What is to be run; ``peer`` in 16 bits also in fp32, which it may be faster with."""

    workloads: Sequence[str]
    sizes: Sequence[str]
    precisions: Sequence[Precision]
    threads: int
    repeats: int
    peer: System = "trl"

    def runs(self) -> Iterator[tuple[Case, System, int]]:
        """Case, system and repeat of every run, in order."""
        for size in self.sizes:
            for workload in self.workloads:
                for repeat in range(self.repeats):
                    for system, precision in self._turn():
                        yield Case(workload, size, precision, self.threads), system, repeat

    def run(
        self, results: Results, systems: Systems, *, again: bool = False, patience_s: float | None = None
    ) -> list[str]:
        """Run what is missing, or all of it, and keep it in ``results``; returns which runs failed twice, and how.

        Args:
            patience_s: longest to wait before each run until the machine is quiet; None runs at once.
        """
        failures: list[str] = []
        self._know_the_machine(results)
        versions = {system: systems.versions(system) for system in ("rl", self.peer)}
        todo = [run for run in self.runs() if again or results.get(*run) is None]
        for number, (case, system, repeat) in enumerate(todo, 1):
            if patience_s is not None:
                machine.wait_until_quiet(machine.QUIET_CORES, patience_s=patience_s)
            load = os.getloadavg()[0]
            run = _twice(partial(systems.run, system, case), f"{case.name} {system}", failures)
            if run is None:
                continue
            about = versions[system] | {"date": time.strftime("%Y-%m-%d %H:%M"), "load_average_before": load}
            results.add(case, system, repeat, run, about=about)
            print(
                f"{number}/{len(todo)} {case.name} {system} {repeat + 1}: {run.seconds / run.steps:.3f} s/step, "
                f"{run.cpu_seconds / run.steps:.3f} CPU s/step, foreign load {run.foreign:.2f}",
                flush=True,
            )
        return failures + self.check_equality(results, systems, again=again)

    def measure_overhead(self, results: Results, systems: Systems, *, again: bool = False) -> list[str]:
        """Of this project's steps in every GRPO case; returns what failed."""
        failures: list[str] = []
        for case in dict.fromkeys(case for case, system, _ in self.runs() if system == "rl"):
            if WORKLOADS[case.workload].kind == "grpo" and (again or case.name not in results.overhead):
                found = _twice(partial(systems.overhead, case), f"overhead of {case.name}", failures)
                if found is None:
                    continue
                results.overhead[case.name] = found
                results.save()
                print(f"{case.name}: {1000 * found['rest_s']:.1f} ms of a step are the loop's own", flush=True)
        return failures

    def check_equality(self, results: Results, systems: Systems, *, again: bool = False) -> list[str]:
        """A step of every GRPO case in fp32 on the same completions; returns what failed."""
        failures: list[str] = []
        for case in dict.fromkeys(case for case, _, _ in self.runs()):
            name = f"{case.name}/{self.peer}"
            if WORKLOADS[case.workload].kind != "grpo" or case.precision != "fp32":
                continue
            if again or results.equality.get(name) is None:
                unequal = _twice(
                    partial(systems.unequal_on_the_same_completions, case, self.peer),
                    f"equality of {name}",
                    failures,
                )
                if unequal is None:
                    continue
                results.equality[name] = unequal
                results.save()
                print(f"{name}: {'; '.join(unequal) or 'equal on the same completions'}", flush=True)
        return failures

    def _turn(self) -> list[tuple[System, Precision]]:
        turn: list[tuple[System, Precision]] = []
        for precision in self.precisions:
            turn += [("rl", precision), (self.peer, precision)]
        if "fp32" not in self.precisions:
            turn.append((self.peer, "fp32"))
        return turn

    def _know_the_machine(self, results: Results) -> None:
        if not results.machine:
            results.machine = machine.describe()
        peaks = results.machine.setdefault("peaks", {})
        # Best of the runs there were: contention can only lower it.
        for precision, peak in machine.matrix_peaks(self.threads).items():
            known = peaks.setdefault(str(self.threads), {})
            known[precision] = max(peak, known.get(precision, 0.0))
        results.save()


def _twice(attempt: Callable[[], T], what: str, failures: list[str]) -> T | None:
    """What ``attempt`` gives; None, with a word in ``failures``, where a system failed in it twice."""
    for last in (False, True):
        try:
            return attempt()
        except SystemFailed as error:
            print(f"{what}: {error}", flush=True)
            if last:
                failures.append(f"{what} failed: {str(error).splitlines()[0]}")
    return None
