"""How long until something happens: CPU of the light commands, and `rl run` until its first optimizer step.

CPU seconds are those of the command's own process; the least of some runs is shown. For the run, the seconds from its
start until each of its milestones are read from its log, and the first step from ``metrics.jsonl``; then it is stopped
as with Ctrl-C.

    python benchmarks/startup.py
    python benchmarks/startup.py --config my.yaml --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RL = Path(sys.executable).with_name("rl")
QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
MILESTONES = ("loading data", "starting Ray", "training and", "parameters")
"""First words of the log's lines, as far as they tell where the time goes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print two tables; the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(width=110)
    commands = [["--help"], ["plugins"], ["check", str(options.config)]]
    light = Table("command", "CPU s", title="Light commands", title_justify="left")
    for command in commands:
        light.add_row(f"rl {' '.join(command)}", f"{min(cpu_seconds(command) for _ in range(options.rounds)):.2f}")
    console.print(light)
    for line in first_step(options.config, options.timeout):
        console.print(line, highlight=False)
    return 0


def cpu_seconds(command: Sequence[str]) -> float:
    """User and system time of one ``rl`` process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([RL, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def first_step(config: Path, timeout_s: float) -> list[str]:
    """Run ``config`` until its first step is logged; when what happened, in seconds after the start."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.time()
        process = subprocess.Popen(
            [RL, "run", str(config), f"run.directory={run}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"RAY_ADDRESS": ""},
        )
        try:
            took = _wait_for_step(run / "metrics.jsonl", process, started, timeout_s)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(120)
            process.kill()
        lines = [f"{at - started:6.1f} s  {text}" for at, text in _log(run / "logs" / "rl.log") if at - started < took]
    return [*lines, f"{took:6.1f} s  the first optimizer step is logged"]


def _wait_for_step(metrics: Path, process: subprocess.Popen[bytes], started: float, timeout_s: float) -> float:
    while time.time() - started < timeout_s and process.poll() is None:
        rows = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        if any(json.loads(row)["step"] >= 1 for row in rows if row.endswith("\n")):
            return time.time() - started
        time.sleep(0.02)
    raise SystemExit("the run took no step; run it by itself to see why")


def _log(path: Path) -> list[tuple[float, str]]:
    found = []
    for line in path.read_text().splitlines():
        stamp, _, text = line.partition(" INFO ")
        if any(words in text for words in MILESTONES):
            found.append((datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp(), text.partition(": ")[2]))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=QUICKSTART)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each light command")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that the run may take to its first step")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
