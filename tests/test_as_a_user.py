"""What a user types first, started as a user starts it: its own Ray, workers that import everything anew.

Kills of workers and drivers that are started so are in `faults/test_worker_faults.py` and `faults/test_ray_faults.py`.
"""

import re
import subprocess

import pytest
from support import EXAMPLES, RL, metrics_of, users_environment

pytestmark = pytest.mark.slow


def test_the_quickstart_learns_addition(tmp_path):
    command = [RL, "run", EXAMPLES / "quickstart.yaml", f"run.directory={tmp_path}/run"]
    done = subprocess.run(command, env=users_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics_of(tmp_path / "run")
    accuracy = {
        s: [r["eval/accuracy"] for r in rows if r["stage"] == s and "eval/accuracy" in r] for s in ("sft", "grpo")
    }
    assert 0.45 < accuracy["sft"][-1] < 0.75, "noisy demonstrations leave a middling accuracy"
    assert accuracy["grpo"][-1] >= 0.97
    assert max(r.get("mismatch/max_abs_logprob_gap", 0.0) for r in rows) < 1e-4
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "curves.png" in done.stdout
    assert len(re.findall(r"^.\s*\d\d\+\d\d=", done.stdout, re.M)) == 10, done.stdout
