"""Runs that stop and go on: the metrics after the stop are those of a run that never stopped."""

import json
import os
import re
import signal
import time

import pytest
from support import metrics_of

pytestmark = pytest.mark.slow


def without_times(rows):
    return [{k: v for k, v in r.items() if not k.startswith("time/") and "per_second" not in k} for r in rows]


def wait_for_checkpoint_of_any_step(process, run, timeout=180):
    deadline = time.time() + timeout
    while not list((run / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline, "no checkpoint in time"
        time.sleep(0.02)


def wait_for_checkpoint(process, run, step, timeout=180):
    deadline = time.time() + timeout
    while not (run / "checkpoints" / f"step-{step:06d}").is_dir():
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline, "no checkpoint in time"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["tiny", "tiny_sft"])
def test_a_killed_run_continues_with_the_same_metrics(kind, request, rl, start_rl, tmp_path):
    config = request.getfixturevalue(kind)
    common = ["run.steps=20", "run.checkpoint_every=10"]
    rl("run", config, *common, f"run.directory={tmp_path}/whole")
    broken = tmp_path / "broken"
    process = start_rl("run", config, *common, f"run.directory={broken}")
    wait_for_checkpoint(process, broken, 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rl("resume", broken)
    whole, again = metrics_of(tmp_path / "whole"), metrics_of(broken)
    assert [r["step"] for r in whole] == list(range(1, 21))
    assert without_times(again) == without_times(whole)
    assert (broken / "export" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "export" / "model.safetensors"
    ).read_bytes()


def test_ctrl_c_saves_a_checkpoint_and_exits_130(tiny, start_rl, rl, tmp_path):
    run = tmp_path / "run"
    process = start_rl("run", tiny, "run.steps=100000")
    deadline = time.time() + 180
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    last = metrics_of(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:06d}").is_dir()
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    assert f"stopped after step {last} of stage 'train'; a checkpoint is saved" in output
    rl("resume", run, f"run.steps={last + 1}")
    assert [r["step"] for r in metrics_of(run)] == list(range(1, last + 2))


def test_resuming_a_finished_run_says_that_nothing_is_left(tiny_sft, rl, tmp_path):
    rl("run", tiny_sft)
    done = rl("resume", tmp_path / "run", check=False)
    assert done.returncode == 1
    assert f"nothing to do: every stage of {tmp_path}/run has finished" in done.stderr


def test_run_with_resume_continues_an_existing_directory_also_with_more_workers(tiny_sft, rl, tmp_path):
    rl("run", tiny_sft, "run.steps=2")
    said = rl("run", tiny_sft, "--resume", "run.steps=4", "backend.parallel.dp=2").stderr
    assert "changed since the run was started: backend.parallel.dp: None → 2\n" in said
    assert "train: continuing from " in said
    assert [r["step"] for r in metrics_of(tmp_path / "run")] == [1, 2, 3, 4]
    # The config it was started with is kept next to the new one.
    assert len(list((tmp_path / "run").glob("config*.yaml"))) == 2


def test_a_dead_training_worker_is_named_where_no_failure_is_allowed(tiny_sft, start_rl, tmp_path):
    run = tmp_path / "run"
    process = start_rl("run", tiny_sft, "run.steps=100000", "run.checkpoint_every=5", "run.max_failures=0")
    wait_for_checkpoint_of_any_step(process, run)
    worker = int(re.search(r"pid (\d+)", (run / "logs" / "train-0.log").read_text()).group(1))
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert re.search(r"error: training worker train-0 \(pid \d+ on \S+\) ended during policy \w+: ", output)
    assert "this was the first failure, and run.max_failures is 0: the run stops" in output
    assert "`rl resume` continues from the last checkpoint" in output
    assert "Traceback" not in output
