"""Runs on a cluster somebody else started: two machines, by address and through a Ray client."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rl_core.network import interfaces
from support import RL, environment, metrics_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two machines: its addresses, and where it puts workers with GPUs."""
    script = Path(__file__).with_name("two_nodes.py")
    command = [sys.executable, script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        direct, client = process.stdout.readline().split()
        yield {"direct": direct, "client": client}, json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def addresses(two_nodes):
    return two_nodes[0]


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
    # Both machines are this one; its processes use the interface that has their address in Ray.
    own = {address for addresses in interfaces().values() for address in addresses}
    for rank in (0, 1):
        log = (tmp_path / "run" / "logs" / f"train-{rank}.log").read_text()
        assert re.search(r"process groups listen on \S+ \((\S+)\)", log)[1] in own


def test_generators_have_gpus_of_their_own_beside_equal_shares_of_training_or_the_same_as_a_rank(two_nodes):
    separate, colocated = two_nodes[1]["separate"], two_nodes[1]["colocated"]
    first, second = sorted({*separate["ranks"]})
    assert separate["ranks"] == [first, first, second, second]
    assert sorted(separate["replicas"]) == [first, second]
    assert [len(gpus) for gpus in separate["gpus"]] == [1, 1]
    assert (separate["ranks"][0], separate["gpus"][0]) != (separate["replicas"][0], separate["gpus"][1])
    assert colocated["ranks"] == colocated["replicas"] == [first, second]
    assert colocated["gpus"][0] == colocated["gpus"][1]
