"""``python -m compare``: run what is missing in the results file, print the table, and publish it where asked to."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compare import machine, publishing
from compare.guard import guard
from compare.ratios import comparisons
from compare.results import Results
from compare.schedule import Schedule
from compare.systems import BENCHMARKS, Systems, find_trl_python
from compare.workloads import SIZES, WORKLOADS

ROOT = BENCHMARKS.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where a comparison is void or the guard found something."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the system that runs is ended, too
    if given.guard:
        return guard(given.scratch)
    results = Results.open(given.output)
    threads = given.threads or machine.usable_cores()
    failures: list[str] = []
    if not given.table:
        failures = _run(given, results, threads)
    found = comparisons(results, "trl")
    print(publishing.report(results, found))
    if given.publish:
        for path in publishing.publish(results, found, ROOT / "docs"):
            print(f"wrote {path}")
    print("\n".join(failures))
    return 1 if failures or any(c.void for c in found) else 0


def _run(given: argparse.Namespace, results: Results, threads: int) -> list[str]:
    """Run what is missing; returns what failed."""
    patience = None if given.busy else given.patience
    _require_quiet(patience)
    python = given.trl_python or os.environ.get("BENCH_TRL_PYTHON") or find_trl_python(ROOT)
    schedule = Schedule(
        workloads=given.only or list(WORKLOADS),
        sizes=given.size or list(SIZES),
        precisions=given.precision or ["fp32"],
        threads=threads,
        repeats=given.repeats,
    )
    folder = Path(tempfile.mkdtemp(prefix="compare-", dir=given.scratch))
    systems = Systems(folder, trl_python=python)
    failures = schedule.run(results, systems, again=given.again, patience_s=patience)
    if given.overhead:
        failures += schedule.measure_overhead(results, systems, again=given.again)
    if not failures:  # else the folders of the systems that failed have their logs
        shutil.rmtree(folder)
    return failures


def _require_quiet(patience_s: float | None) -> None:
    """Wait for a quiet machine, or end with a message; None does neither."""
    if patience_s is None:
        return
    print(f"load average {os.getloadavg()[0]:.1f}, waiting at most {patience_s:.0f} s for a quiet machine", flush=True)
    busy = machine.wait_until_quiet(machine.QUIET_CORES, patience_s=patience_s)
    if busy > machine.QUIET_CORES:
        sys.exit(
            f"{busy:.1f} cores are busy with other work, and a comparison would say little\n"
            "    stop that work, wait longer (--patience SECONDS), or compare all the same (--busy)"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--size", nargs="+", choices=list(SIZES), help="models of 0.4, 3 and 25 million parameters")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), help="default: fp32")
    parser.add_argument("--threads", type=int, help="of every process; default: one for each core")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs, in turns; default: 3")
    parser.add_argument(
        "--output", type=Path, default=Path("compare.json"), help="JSON file; what it has is not run again"
    )
    parser.add_argument("--again", action="store_true", help="run also what the file has")
    parser.add_argument("--table", action="store_true", help="run nothing, print what the file has")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md and docs/figures/")
    parser.add_argument("--overhead", action="store_true", help="time also the parts of this project's GRPO steps")
    parser.add_argument("--busy", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for it before every run")
    parser.add_argument("--trl-python", help="interpreter with TRL; default: the hatch environment bench-trl")
    parser.add_argument("--scratch", type=Path, help="folder for models, data and logs; default: the system's")
    parser.add_argument("--guard", action="store_true", help="the short version for nightly runs, without TRL")
    return parser


if __name__ == "__main__":
    sys.exit(main())
