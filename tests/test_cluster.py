"""Runs on a cluster somebody else started: two machines, by address and through a Ray client."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import RL, environment, metrics_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def addresses():
    """The address of a cluster of two machines, and the one for Ray clients."""
    script = Path(__file__).with_name("two_nodes.py")
    process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    direct, client = process.stdout.readline().split()
    yield {"direct": direct, "client": client}
    process.stdin.close()
    process.wait(60)


@pytest.mark.parametrize("way", ["direct", "client"])
def test_a_run_spreads_over_the_machines_of_an_existing_cluster(way, addresses, tiny, tmp_path):
    environment_without = {k: v for k, v in environment("").items() if k != "RAY_ADDRESS"}
    overrides = ["run.nodes=2", "backend.parallel.dp=2", "run.steps=2", f"run.address={addresses[way]}"]
    done = subprocess.run(
        [RL, "run", tiny, *overrides],
        env=environment_without,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["mismatch/max_abs_logprob_gap"] < 1e-5 for row in rows)
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
