"""The reward of ``benchmarks/faults.py``: scores, writes down when, and injects the fault that is due."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rl_core.contracts.reward import Sample


def ones(samples: Sequence[Sample], run: str, faults: Mapping[str, Sequence[str]]) -> list[float]:
    """The share of ones; ``faults`` has ``[signal, worker]`` by the number of the call, from 1."""
    calls = Path(run) / "calls.jsonl"
    number = len(calls.read_text().splitlines()) + 1 if calls.exists() else 1
    due = faults.get(str(number))
    entry = {"call": number, "scored": time.time(), "fault": due}
    if due is not None:
        name, worker = due
        pids = re.findall(r"pid (\d+) on", (Path(run) / "logs" / f"{worker}.log").read_text())
        entry["injected"] = time.time()
        os.kill(int(pids[-1]), signal.Signals[name])
    with calls.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return [s.completion.count("1") / 4 for s in samples]


def hangs(samples: Sequence[Sample]) -> list[float]:
    """Never returns for a completion ``hang``."""
    while any(sample.completion == "hang" for sample in samples):
        time.sleep(1)
    return [1.0] * len(samples)
