"""A run whose workers are killed ends with the metrics and weights of one that nobody touched."""

import json
import re
import subprocess
from datetime import datetime

import pytest
from support import RL, environment, metrics_of, users_environment

pytestmark = pytest.mark.slow

REWARD = """\
import os, re, signal, time
from pathlib import Path

def kill(log):
    pids = re.findall(r"pid (\\d+) on", Path(log).read_text())
    Path(__file__).with_name("killed").write_text(str(time.time()))
    os.kill(int(pids[-1]), signal.SIGKILL)

def ones(samples):
    calls = Path(__file__).with_name("calls")  # the module itself is loaded again when the workers are
    calls.write_text(calls.read_text() + "." if calls.exists() else ".")
    victim = {victims}.get(len(calls.read_text()))
    if victim:
        kill(Path(__file__).with_name("run") / "logs" / victim)
    return [s.completion.count("1") / 4 for s in samples]
"""


def train(folder, tiny, victims, variables):
    """Run GRPO in ``folder``; its reward kills ``victims`` (a worker's log, by the number of the reward's call)."""
    folder.mkdir()
    reward = folder / "my_reward.py"
    reward.write_text(REWARD.format(victims=victims))
    function = f"rewards=[{{name: function, function: '{reward}:ones'}}]"
    settings = ["run.steps=10", "run.checkpoint_every=4", "run.heartbeat_timeout=60s", f"run.directory={folder}/run"]
    done = subprocess.run(
        [RL, "run", tiny, *settings, function], env=variables, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def comparable(row):
    """Without what depends on the clock, or tells of the failures themselves."""
    own = ("rollout/retried_requests", "run/failures")
    return {k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k and k not in own}


def test_a_run_outlives_its_generator_and_its_training_worker(tiny, cluster, tmp_path):
    whole = train(tmp_path / "whole", tiny, {}, environment(cluster))
    # The generator dies before it is given the weights of step 2; its replacement gets them and samples step 3.
    # This run starts Ray and its workers itself, as a user's.
    broken = train(tmp_path / "broken", tiny, {2: "generate-0.log", 6: "train-0.log"}, users_environment())

    rows, undisturbed = metrics_of(broken), metrics_of(whole)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [comparable(row) for row in rows] == [comparable(row) for row in undisturbed]
    weights = "export/model.safetensors"
    assert (broken / weights).read_bytes() == (whole / weights).read_bytes()

    # Only step 5 is trained again: the checkpoint of step 4 did not hold it.
    assert [row.get("run/failures") for row in rows] == [None] * 4 + [1.0] * 6
    assert [row["step"] for row in rows if "time/recovery_s" in row] == [5]
    discarded = [json.loads(line) for line in (broken / "metrics.discarded.jsonl").read_text().splitlines()]
    assert [row["step"] for row in discarded] == [5]
    assert json.loads((broken / "status.json").read_text())["failures"] == 1

    log = (broken / "logs" / "rl.log").read_text()
    assert re.search(r"WARNING rl: a generator is lost, 0 go on: generator generate-0 \(pid \d+ on \S+\) ended", log)
    assert re.search(
        r"WARNING rl: failure 1 of 3 that are recovered from: training worker train-0 \(pid \d+ on \S+\) ended during "
        r"policy \w+: its process is gone",
        log,
    )
    assert "WARNING rl: starting all workers again, and continuing after step 4\n" in log

    # Noticed at once, not for want of a heartbeat. (Less than 2 s: see the figures in docs/reliability.md.)
    at = re.search(r"^(\S+ \S+) WARNING rl: failure 1 of 3", log, re.MULTILINE)[1]
    noticed = datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    assert noticed - float((tmp_path / "broken" / "killed").read_text()) < 30
