"""Check the framework on one GPU: it computes what it computes on the CPU, and how fast.

    python benchmarks/gpu/check.py                           # on the first GPU, at most 8 minutes
    python benchmarks/gpu/check.py --only ipc --only lora    # some cases
    python benchmarks/gpu/check.py --list
    python benchmarks/gpu/check.py --device cpu --size tiny  # does it run? no GPU needed
    python benchmarks/gpu/check.py --table gpu-check.json    # Markdown of earlier results

Needs PyTorch 2.11, transformers 5.17, peft, safetensors and numpy or newer, and nothing installed of this repository.
Results are written to a JSON file after every case. The exit code is 0 if every comparison holds, 1 if not, 2 for wrong
arguments and 3 where something is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ in ("__main__", "__mp_main__"):  # as a script, and in the processes that it starts
    sys.path[0:1] = [str(ROOT / "benchmarks"), *sorted(str(path) for path in ROOT.glob("packages/*/src"))]

from gpu.report import markdown, verdict  # noqa: E402
from gpu.worker import serve  # noqa: E402

NEEDS = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
START_S = 120.0
"""For a process to import everything and find the device."""

CPU_FACTOR = 20
"""Deadlines are for a GPU; a CPU, which may be busy, has so many times as long."""

SHORTEST_S = 5.0
"""With less time left a case is not begun."""


class Worker:
    """A process that runs cases, and is replaced when it hangs, dies or has failed."""

    def __init__(self, device: str, size: str) -> None:
        self._arguments = (device, size)
        self._process: Any = None
        self._connection: Any = None

    def start(self, seconds: float) -> tuple[str, Any]:
        """``facts`` and them, or ``broken`` and why."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = multiprocessing.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()
        word, detail = self._receive(seconds)
        return (word, detail) if word == "facts" else ("broken", _text(detail))

    def run(self, name: str, seconds: float) -> dict[str, Any]:
        """``status`` (ok, wrong, failed, skipped, late or died), ``detail``, ``seconds`` and ``found``."""
        deadline, started = time.monotonic() + seconds, time.monotonic()
        found: list[Any] = []
        self._connection.send(name)
        while True:
            word, detail = self._receive(deadline - time.monotonic())
            if word != "found":
                break
            found.append(detail)
        if word == "done":
            word = "ok" if all(f["holds"] for f in found) else "wrong"
        taken = detail["seconds"] if isinstance(detail, Mapping) else time.monotonic() - started
        if word not in ("ok", "wrong", "skipped"):
            self.stop()  # an error on the device may stay with the process
        return {"status": word, "detail": _text(detail), "seconds": taken, "found": found}

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """End the process, and those that it started."""
        if self._process is None:
            return
        try:
            self._connection.send(None)
            self._process.join(2)
        except OSError:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.join(10)
        self._process = None

    def _receive(self, seconds: float) -> tuple[str, Any]:
        try:
            if not self._connection.poll(max(0.0, seconds)):
                return "late", f"not done after {seconds:.0f} s"
            word, detail = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            return "died", f"the process ended with {self._process.exitcode} (a negative number: by that signal)"
        return str(word), detail


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, write JSON, print Markdown; the exit code."""
    options = _parser().parse_args(arguments)
    if options.table:
        print(markdown(json.loads(options.table.read_text())))
        return 0
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        print(f"error: not installed: {', '.join(missing)}\n    pip install {' '.join(missing)}", file=sys.stderr)
        return 3
    if options.list:
        _print_cases()
        return 0
    try:
        results = check(options, sys.argv[1:] if arguments is None else arguments)
    except NotStarted as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    print(markdown(results))
    print(f"\nwritten to {options.output}")
    return 0 if verdict(results) else 1


class NotStarted(Exception):
    """No case can be run; ``code`` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def check(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the cases within the budget; the results, which are written as they come.

    Raises:
        NotStarted: the device cannot be used, or there is no such case.
    """
    started = time.monotonic()
    worker = Worker(options.device, options.size or ("full" if options.device == "cuda" else "tiny"))
    results: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/gpu/check.py", *arguments]),
        "commit": _commit(),
        "seconds": 0.0,
        "cases": [],
    }
    try:
        results["facts"], cases = _started(worker, options)
        for case in cases:
            left = 60 * options.budget_minutes - (time.monotonic() - started)
            ended = _run(worker, case, left, results["facts"]["device"])
            results["cases"].append({"name": case["name"], "part": case["part"], **ended})
            results["seconds"] = time.monotonic() - started
            _write(options.output, results)
            print(f"{case['name']:24} {ended['status']:9} {ended['seconds'] or 0:6.1f} s", file=sys.stderr, flush=True)
    finally:
        worker.stop()
    return results


def _started(worker: Worker, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the first process says of the machine, and the cases asked for."""
    word, detail = worker.start(START_S)
    if word != "facts":
        raise NotStarted(detail, 3)
    cases = {case["name"]: case for case in detail["cases"]}
    if unknown := [name for name in options.only if name not in cases]:
        raise NotStarted(f"no case {unknown[0]!r}\n    --list shows them all", 2)
    return detail["facts"], [case for name, case in cases.items() if not options.only or name in options.only]


def _run(worker: Worker, case: Mapping[str, Any], left: float, device: str) -> dict[str, Any]:
    """Run a case in at most ``left`` seconds, in a new process where the last one ended."""
    begun = time.monotonic()
    nothing: dict[str, Any] = {"seconds": None, "found": []}
    if left < SHORTEST_S:
        return {"status": "skipped for time", "detail": "", **nothing}
    if not worker.is_running:
        word, detail = worker.start(min(START_S, left))
        if word != "facts":
            worker.stop()
            return {"status": "failed", "detail": detail, **nothing}
    longest = case["limit_s"] * (CPU_FACTOR if device == "CPU" else 1)
    return worker.run(case["name"], min(longest, left - (time.monotonic() - begun)))


def _print_cases() -> None:
    from gpu import cases  # noqa: F401 - registers them
    from gpu.registry import CASES

    for case in CASES.values():
        print(f"{case.name:24} {case.part:9} {case.seconds:3.0f} s  {case.summary}")


def _text(detail: Any) -> str:
    return detail["detail"] if isinstance(detail, Mapping) else str(detail)


def _commit() -> str | None:
    try:
        ended = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()


def _write(path: Path, results: Mapping[str, Any]) -> None:
    """All of it or nothing, so that what is there can always be read."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), help="of the models compared; default: full (CPU: tiny)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this case; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--budget-minutes", type=float, default=8.0, help="time for all cases; default: 8")
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"), help="JSON file with all results")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print Markdown of earlier results and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
