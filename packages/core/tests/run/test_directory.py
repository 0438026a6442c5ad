import errno
import json
import os

import pytest
from rl_core.errors import ConfigError, EnvironmentProblem, StorageError
from rl_core.run.directory import RunDirectory, read_status


def create(path):
    return RunDirectory.create(path, config_yaml="run: {}\n", manifest={"rl-core": "0.1.0"})


def test_a_run_directory_starts_with_config_and_plugin_versions(tmp_path):
    run = create(tmp_path / "r")
    assert (run.path / "config.yaml").read_text() == "run: {}\n"
    assert json.loads((run.path / "plugins.json").read_text()) == {"rl-core": "0.1.0"}
    run.status(status="running", step=3)
    assert read_status(run.path)["step"] == 3


def test_an_existing_run_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError) as raised:
        create(tmp_path)
    assert str(raised.value) == (
        f"the run directory {tmp_path} already exists\n"
        f"    continue it:  rl resume {tmp_path}\n"
        "    or start another:  add run.name=NEW_NAME to the command"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unwritable_place_is_an_environment_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem) as raised:
        create(tmp_path / "file" / "run")
    assert str(raised.value) == (
        f"cannot write the run directory {tmp_path}/file/run: Not a directory\n"
        "    choose another with run.directory=PATH"
    )


def test_two_processes_cannot_work_in_one_run_directory(tmp_path):
    first = create(tmp_path / "r")
    with pytest.raises(ConfigError) as raised:
        RunDirectory.open(tmp_path / "r")
    assert str(raised.value) == f"another process is running in {tmp_path}/r\n    see: rl runs {tmp_path}"
    first.close()
    RunDirectory.open(tmp_path / "r").close()


def test_steps_that_will_run_again_are_moved_not_lost(tmp_path):
    run = create(tmp_path / "r")
    rows = [{"stage": "sft", "step": 9}, {"stage": "grpo", "step": 1}, {"stage": "grpo", "step": 2}]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"stage": "grpo", "st')
    assert run.trim("grpo", 1) == 2
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == rows[:2]
    assert (run.path / "metrics.discarded.jsonl").read_text() == json.dumps(rows[2]) + '\n{"stage": "grpo", "st\n'


def test_a_folder_that_a_run_was_killed_in_before_it_began_is_taken(tmp_path):
    create(tmp_path / "r").close()
    (tmp_path / "r" / "config.yaml").unlink()
    run = create(tmp_path / "r")
    assert (run.path / "config.yaml").read_text() == "run: {}\n"


def test_a_replaced_config_keeps_the_one_before(tmp_path):
    run = create(tmp_path / "r")
    run.replace_config("run: {}\n")
    assert [p.name for p in run.path.glob("config*")] == ["config.yaml"]
    run.replace_config("run: {steps: 2}\n")
    assert (run.path / "config.yaml").read_text() == "run: {steps: 2}\n"
    (kept,) = run.path.glob("config.2*.yaml")
    assert kept.read_text() == "run: {}\n"


def test_the_last_logged_step_is_that_of_the_stage_and_torn_lines_do_not_count(tmp_path):
    run = create(tmp_path / "r")
    assert run.last_step("grpo") == 0
    rows = [{"stage": "sft", "step": 9}, {"stage": "grpo", "step": 1, "loss": 2.5}, {"stage": "grpo", "step": 2}]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"stage": "grpo", "step": 3')
    assert run.last_step("grpo") == 2
    assert run.last_metrics("grpo") == {"step": 2, "loss": 2.5}


def test_a_disk_without_room_for_the_status_does_not_stop_a_run(tmp_path, caplog, monkeypatch):
    run = create(tmp_path / "r")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    for step in (3, 4):
        run.status(status="running", step=step)
    assert caplog.messages == [f"cannot write {run.path}/status.json: No space left on device"]


def test_rows_stay_where_they_are_while_there_is_no_room_to_move_them(tmp_path, monkeypatch):
    run = create(tmp_path / "r")
    rows = "".join(f'{{"step": {step}, "stage": "train"}}\n' for step in (1, 2, 3))
    run.metrics.write_text(rows)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(StorageError) as caught:
            run.trim("train", 2)
    assert str(caught.value) == (
        f"the steps of stage 'train' after step 2 cannot be moved out of {run.metrics}: No space left on device\n"
        f"    make room, then continue with: rl resume {run.path}"
    )
    assert run.metrics.read_text() == rows
    assert run.trim("train", 2) == 1


def test_the_status_does_not_hold_secrets_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ACME_TOKEN", "abcdef123")
    run = create(tmp_path / "r")
    run.status(status="failed", error="refused abcdef123")
    assert read_status(run.path)["error"] == "refused ***"
