import json

import pytest
from rl_core.errors import ConfigError, EnvironmentProblem
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
