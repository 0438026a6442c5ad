"""Paths and readers the tests across packages share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RL = str(Path(sys.executable).with_name("rl"))


def environment(address):
    """The environment of a test's `rl`: the test cluster, one OpenMP thread, no terminal."""
    return os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}


def users_environment():
    """The environment of a user's `rl`: no test cluster, no settings of the tests."""
    tests = ("RAY_", "RL_", "OMP_", "HF_", "LOG_NAME_UPDATE_INTERVAL_S", "TORCHINDUCTOR_")
    return {name: value for name, value in os.environ.items() if not name.startswith(tests)} | {"COLUMNS": "160"}


def metrics_of(run):
    """metrics.jsonl as a list of dicts."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
