"""What leaves the machine holds no secrets, and a tracker's run is found again."""

import json

import pytest
from rl_core.contracts.logger import RunInfo, Span
from rl_core.training.logger_group import LoggerGroup
from rl_core.training.observers import Observers
from rl_secrets.redaction import forget_secrets, remember_secrets
from rl_tracker_common.config import Change, config_changes, flat_config
from rl_tracker_common.files import export_folder, pictures, text_without_secrets
from rl_tracker_common.memory import TrackerMemory
from rl_tracker_common.samples import sample_table
from rl_tracker_common.tracing import Trace


@pytest.fixture(autouse=True)
def no_secrets_left():
    yield
    forget_secrets()


def test_a_config_becomes_one_value_a_name():
    config = {"algorithm": {"betas": [0.9, 0.99], "clip": None}, "rewards": [{"name": "math"}, {"name": "regex"}]}
    assert flat_config(config) == {
        "algorithm.betas": "[0.9, 0.99]",
        "algorithm.clip": None,
        "rewards.0.name": "math",
        "rewards.1.name": "regex",
    }


def test_secrets_of_a_config_are_masked():
    remember_secrets(["correct-horse"])
    config = {"hub": {"api_key": "k-12345678"}, "url": "https://user:pa55word@host/", "note": "it is correct-horse"}
    flat = flat_config(config)
    assert flat["hub.api_key"] == "***"
    assert "pa55word" not in str(flat)
    assert flat["note"] == "it is ***"


def test_what_changed_in_a_config_is_listed_by_name():
    before, after = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}
    assert config_changes(before, after) == [Change("b", 2, 4), Change("c", 3, None), Change("d", None, 5)]
    assert [str(one) for one in config_changes(before, after)] == ["2 → 4", "3 → None", "None → 5"]


def test_a_run_is_remembered_from_start_to_start(tmp_path):
    first = TrackerMemory(tmp_path, "wandb")
    assert (first.id_of("sft"), first.changes("sft", {"a": 1})) == (None, [])
    first.remember("sft", id="abc", config={"a": 1})
    again = TrackerMemory(tmp_path, "wandb")
    assert again.id_of("sft") == "abc"
    assert again.changes("sft", {"a": 2}) == [Change("a", 1, 2)]
    assert TrackerMemory(tmp_path, "mlflow").id_of("sft") is None


def test_samples_of_different_kinds_are_one_table():
    rows = [{"prompt": "1+1=", "reward": 1.0}, {"prompt": "2+2=", "messages": [{"role": "user"}], "answer": None}]
    assert sample_table(7, rows) == (
        ["step", "prompt", "reward", "messages", "answer"],
        [[7, "1+1=", 1.0, None, None], [7, "2+2=", None, '[{"role": "user"}]', None]],
    )


def test_what_looks_like_a_secret_in_a_sample_is_masked():
    _, [[_, text]] = sample_table(1, [{"completion": "curl https://user:pa55word@host/"}])
    assert "pa55word" not in text


def test_pictures_are_those_of_the_run_and_of_its_stages(tmp_path):
    for name in ("plot.png", "stages/sft/curve.png", "export/logo.png", "plot.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in pictures(tmp_path)] == ["plot.png", "stages/sft/curve.png"]


def test_a_text_file_is_read_without_secrets(tmp_path):
    remember_secrets(["correct-horse"])
    (tmp_path / "config.yaml").write_text("note: correct-horse\n")
    assert text_without_secrets(tmp_path / "config.yaml") == "note: ***\n"
    assert text_without_secrets(tmp_path / "missing") is None


def test_the_export_is_that_of_the_stage(tmp_path):
    assert export_folder(tmp_path, "sft") is None
    (tmp_path / "export").mkdir()
    assert export_folder(tmp_path, "sft") == tmp_path / "export"
    (tmp_path / "stages/sft/export").mkdir(parents=True)
    assert export_folder(tmp_path, "sft") == tmp_path / "stages/sft/export"


def test_a_step_is_a_tree_of_spans_and_phases_outside_of_steps_are_left_out():
    class Keeps:
        def __init__(self):
            self.traces = []

        def log_trace(self, step, spans):
            self.traces.append((step, list(spans)))

    kept, clock = Keeps(), iter(range(100))
    observers = Observers(Trace(LoggerGroup([("kept", kept)]), now=lambda: float(next(clock))))
    with observers.phase("evaluation"):
        pass
    with observers.step(3):
        with observers.phase("algorithm"), observers.phase("train"):
            pass
        with observers.phase("logging"):
            pass
    assert kept.traces == [
        (
            3,
            [
                Span("step", 0.0, 7.0, None),
                Span("algorithm", 1.0, 4.0, 0),
                Span("train", 2.0, 3.0, 1),
                Span("logging", 5.0, 6.0, 0),
            ],
        )
    ]


def test_a_step_that_fails_is_traced_to_where_it_failed():
    class Keeps:
        def log_trace(self, step, spans):
            self.names = [span.name for span in spans]

    kept = Keeps()
    observers = Observers(Trace(LoggerGroup([("kept", kept)])))
    with pytest.raises(ValueError, match="stop"), observers.step(1), observers.phase("sampling"):
        raise ValueError("stop")
    assert kept.names == ["step", "sampling"]


def test_what_is_remembered_holds_no_secrets(tmp_path):
    info = RunInfo("demo", str(tmp_path), "train", ("train",), 1, 1, {"hub": {"token": "t0p-s3cret-token"}})
    memory = TrackerMemory(info.directory, "wandb")
    memory.remember("train", id="abc", config=flat_config(info.config))
    assert json.loads(memory.path.read_text())["train"]["config"] == {"hub.token": "***"}
