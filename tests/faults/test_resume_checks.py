"""What `rl resume` and its kin refuse, as the user reads it; nothing is started for it."""

import json
import os
import signal
import socket
from contextlib import contextmanager

import pytest
from rl_core.cli.main import main
from rl_core.discovery.registry import load_registry
from rl_core.preflight.check import load_config
from rl_core.training.checkpoint import CheckpointStore, RunState
from rl_core.training.directory import RunDirectory
from rl_core.training.manifest import write_manifest

CONFIG = """\
run: {{name: tiny, directory: {folder}/run, steps: 4, cpus: 1}}
model:
  init: {{architecture: qwen2, hidden_size: 16, layers: 1, heads: 2}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
algorithm: {{name: sft, sequences_per_step: 8}}
data: {{name: jsonl, path: {folder}/rows.jsonl}}
"""


def row(i):
    return json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n"


@pytest.fixture
def run(tmp_path):
    """A run directory that stopped after step 2."""
    (tmp_path / "rows.jsonl").write_text("".join(map(row, range(9))))
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    registry = load_registry()
    config = load_config(tmp_path / "config.yaml", [], registry)
    RunDirectory.create(config.directory, config_yaml=config.to_yaml(), manifest=registry.manifest()).close()
    data = config.stages[0].data
    source = registry.resolve(data.component.factory)(data.config)
    source.load()
    state = RunState("train", step=2, position=16, weights_version=2, fingerprint=source.fingerprint())
    CheckpointStore(tmp_path / "run" / "checkpoints").save(state, lambda folder: (folder / "w.json").write_text("{}"))
    return tmp_path / "run"


def test_a_config_that_would_corrupt_the_run_is_refused_and_nothing_is_written(run, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "logs" not in p.parts}
    assert main(["resume", str(run), "run.seed=3", "algorithm.learning_rate=0.1"]) == 2
    error = capsys.readouterr().err
    assert "changed since the run was started: algorithm.learning_rate: 1e-05 → 0.1\n" in error
    assert error.endswith(
        f"error: the config has changed since {run} was started, in a way that would corrupt it\n"
        "    run.seed: 0 → 3\n"
        "        rows already trained on would come again, others never\n"
        f"    change it back, start a new run, or go on nevertheless with:  rl resume {run} --allow run.seed\n"
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "logs" not in p.parts} == before


def changed_data(run):
    return (
        f"error: the training data of stage 'train' has changed since the checkpoint {run}/checkpoints/step-000002\n"
        "    restore the data, start a new run from the export, or go on with the new data with:  "
        f"rl resume {run} --allow data\n"
    )


def test_a_dataset_that_changed_under_a_run_is_refused(run, capsys):
    with (run.parent / "rows.jsonl").open("a") as file:
        file.write(row(9))
    assert main(["resume", str(run)]) == 1
    assert capsys.readouterr().err.endswith(changed_data(run))


def test_another_path_that_is_allowed_must_still_hold_the_same_data(run, capsys):
    (run.parent / "other.jsonl").write_text(row(1))
    path = f"data.path={run.parent}/other.jsonl"
    assert main(["resume", str(run), path, "--allow", "data.path"]) == 1
    error, folder = capsys.readouterr().err, run.parent
    assert f"changed since the run was started: data.path: {folder}/rows.jsonl → {folder}/other.jsonl\n" in error
    assert error.endswith(changed_data(run))


def test_fewer_steps_than_are_trained_are_refused(run, capsys):
    assert main(["resume", str(run), "run.steps=1"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: nothing to train: stage 'train' is at step 2 already, run.steps is 1\n"
        f"    train on with: rl resume {run} run.steps=MORE_THAN_2\n"
    )


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(run, capsys):
    checkpoint = run / "checkpoints" / "step-000002"
    (checkpoint / "w.json").write_text("{]")
    assert main(["resume", str(run)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.endswith(
        f"error: every checkpoint in {run}/checkpoints is damaged\n"
        "    step-000002: w.json does not match its checksum\n"
        "    restore one from a copy, or move the folder away and train this stage again with --allow restart\n"
    )


def test_a_keep_best_without_a_direction_is_a_config_error(run, capsys):
    assert main(["check", str(run / "config.yaml"), "run.keep_best.metric=eval/loss"]) == 2
    assert "run.keep_best.mode: the section 'run' needs the key 'mode'" in capsys.readouterr().out


@contextmanager
def within(seconds):
    """Fail instead of waiting for a pipe for good."""

    def late(_signal, _frame):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


SPECIAL = [
    ("pipe", "status.json"),
    ("pipe", "metrics.jsonl"),
    ("pipe", "saved.json"),
    ("pipe", "finished.json"),
    ("pipe", "checkpoints/step-000002/state.json"),
    ("pipe", "checkpoints/step-000002/manifest.json"),
    ("socket", "status.json"),
    ("socket", "checkpoints/more"),
    ("link", "metrics.jsonl"),
    ("link", "checkpoints/step-000002/w.json"),
]


def put(kind, path, elsewhere):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    else:
        elsewhere.write_text("{}\n")
        path.symlink_to(elsewhere)


@pytest.mark.parametrize(("kind", "name"), SPECIAL)
def test_a_pipe_a_socket_or_a_link_to_elsewhere_is_refused_by_every_command(run, capsys, monkeypatch, name, kind):
    monkeypatch.chdir(run)
    elsewhere = run.parent / "elsewhere"
    put(kind, run / name, elsewhere)
    what = {"pipe": "a pipe", "socket": "a socket", "link": f"a link to {elsewhere}"}[kind]
    for command in ("resume", "export", "eval"):
        with within(60):
            assert main([command, str(run)]) == 2
        assert capsys.readouterr().err.endswith(
            f"error: the run directory {run} holds what no run writes\n"
            f"    {run / name}: {what}\n"
            "    remove it, or put the files themselves there; run.directory may be a link, nothing inside of it\n"
        )
    with within(60):
        assert main(["runs", str(run.parent)]) == 0
    assert "run" in capsys.readouterr().out


def test_a_link_within_a_run_directory_is_no_matter(run, capsys):
    (run / "newest").symlink_to("checkpoints/step-000002")
    (run / "logs" / "ray").symlink_to("/tmp")
    assert main(["resume", str(run), "run.steps=1"]) == 1
    assert "nothing to train: stage 'train' is at step 2 already" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".lock", "config.yaml"])
def test_a_pipe_in_place_of_the_lock_or_the_config_is_refused_too(run, capsys, name):
    put("pipe", run / name, None)
    with within(60):
        assert main(["resume", str(run)]) in (2, 3)
    said = capsys.readouterr().err
    assert ("it is a pipe, not a regular file" if name == ".lock" else "is not a run directory") in said


@pytest.mark.parametrize("command", ["resume", "export"])
def test_a_pipe_in_place_of_a_run_directory_is_none(tmp_path, capsys, command):
    os.mkfifo(tmp_path / "run")
    with within(60):
        assert main([command, str(tmp_path / "run")]) in (2, 3)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"step": "2"}, {"format": 7}])
def test_a_state_that_this_version_does_not_write_is_an_error_with_file_and_key(run, capsys, change):
    checkpoint = run / "checkpoints" / "step-000002"
    state = json.loads((checkpoint / "state.json").read_text()) | change
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, stage="train", step=2)
    assert main(["resume", str(run)]) == 1
    error = capsys.readouterr().err
    (key,) = change
    assert f"error: {checkpoint}/state.json is damaged: " in error
    assert key in error.partition("state.json is damaged: ")[2]
    assert "Traceback" not in error


def test_another_directory_on_resume_is_refused(run, capsys):
    assert main(["resume", str(run), f"run.directory={run.parent}/other"]) == 2
    assert capsys.readouterr().err == (
        f"error: run.directory={run.parent}/other is not the run that is resumed\n"
        f"    move the whole folder instead: mv {run} NEW_PLACE, then: rl resume NEW_PLACE\n"
    )
    assert not (run.parent / "other").exists()


def test_a_target_of_an_export_that_is_no_folder_is_refused(run, capsys):
    (run.parent / "file").write_text("mine")
    assert main(["export", str(run), "--to", str(run.parent / "file")]) == 1
    assert "already exists and is not empty" in capsys.readouterr().err
