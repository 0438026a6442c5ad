"""``rl runs`` on run directories as runs leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_core.cli.main import main
from rl_reports.run_summary import summarize_run, summarize_runs
from rl_reports.runs import age


@pytest.fixture
def make(tmp_path):
    def make(name: str, *, status: dict | str | None = None, metrics: str = "") -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        (path / "config.yaml").write_text("run: {steps: 1}\n")
        if status is not None:
            (path / "status.json").write_text(status if isinstance(status, str) else json.dumps(status))
        if metrics:
            (path / "metrics.jsonl").write_text(metrics)
        return path

    return make


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_finished_run_shows_its_newest_values(make):
    metrics = lines(
        {"stage": "rl", "step": 9, "train/loss": 0.5, "rollout/reward_mean": 0.25, "eval/accuracy": 0.75},
        {"stage": "rl", "step": 10, "train/loss": 0.125, "rollout/reward_mean": 0.5},
    )
    found = summarize_run(make("a", status={"status": "finished", "stage": "rl", "step": 10}, metrics=metrics))
    assert (found.name, found.status, found.stage, found.step) == ("a", "finished", "rl", 10)
    assert (found.reward, found.accuracy, found.loss) == (0.5, 0.75, 0.125)
    assert 0 <= found.age_s < 60


def test_a_running_run_whose_process_is_gone_was_killed(make):
    assert summarize_run(make("a", status={"status": "running", "pid": os.getpid()})).status == "running"
    assert summarize_run(make("b", status={"status": "running", "pid": dead_pid()})).status == "killed"


def test_a_process_that_only_inherited_the_number_does_not_count(make):
    path = make("a", status={"status": "running", "pid": os.getpid()})
    long_ago = time.time() - 10 * 365 * 86400
    os.utime(path / "status.json", (long_ago, long_ago))
    assert summarize_run(path).status == "killed"


def test_without_a_status_the_step_comes_from_the_metrics(make):
    found = summarize_run(make("a", metrics=lines({"stage": "train", "step": 4, "train/loss": 2})))
    assert (found.status, found.stage, found.step, found.loss) == ("unknown", "train", 4, 2.0)


@pytest.mark.parametrize("status", ["", "{", "[]", '"running"'])
def test_a_status_that_cannot_be_read_is_unknown(make, status):
    assert summarize_run(make("a", status=status)).status == "unknown"


def test_a_line_cut_short_by_a_crash_is_passed_over(make):
    metrics = lines({"stage": "train", "step": 4, "train/loss": 2.0}) + '{"stage": "train", "st'
    assert summarize_run(make("a", metrics=metrics)).step == 4


def test_only_the_end_of_a_long_file_is_read(make):
    metrics = lines({"step": 1, "eval/accuracy": 0.5}) + lines(
        *({"step": step, "train/loss": 1.0, "pad": "x" * 1000} for step in range(2, 402))
    )
    found = summarize_run(make("a", metrics=metrics))
    assert (found.step, found.loss, found.accuracy) == (401, 1.0, None)


def test_runs_are_listed_newest_first_and_other_folders_are_not_runs(make, tmp_path):
    for name, back in (("old", 500), ("new", 5)):
        path = make(name)
        os.utime(path / "config.yaml", (time.time() - back,) * 2)
    (tmp_path / "runs" / "notes").mkdir()
    assert [run.name for run in summarize_runs(tmp_path / "runs")] == ["new", "old"]


def test_the_table_and_the_reason_of_a_failure(make, tmp_path, site, capsys):
    status = {"status": "failed", "stage": "rl", "step": 3, "error": "a worker died\nat rank 1"}
    make("a", status=status, metrics=lines({"step": 3, "rollout/reward_mean": 0.123456}))
    assert main(["runs", str(tmp_path / "runs")]) == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"a failed rl 3 0.1235 0 s {tmp_path / 'runs' / 'a'}" in printed
    assert printed[-1] == "a: a worker died"


def test_a_folder_that_is_not_there(site, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs yet: there is no folder runs/ here\n"
    assert main(["runs", "elsewhere"]) == 2
    assert capsys.readouterr().err == "error: there is no folder elsewhere\n    rl runs DIR lists the runs in DIR\n"
    (tmp_path / "runs").mkdir()
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59, "59 s"), (90, "2 min"), (7300, "2 h"), (200000, "2 d")])
def test_ages_are_short(seconds, text):
    assert age(seconds) == text
