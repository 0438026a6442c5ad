import logging
from pathlib import Path

import pytest
from rl_core.config.stage import RunConfig, StageConfig
from rl_core.errors import ConfigError, RLError
from rl_core.training.checkpoint import CheckpointStore, RunState
from rl_core.training.resume import announce, changes, has_trained, is_allowed, refuse_corrupting, starting_point

BEFORE = {
    "model": {"path": "org/base", "max_length": 64},
    "run": {"name": "demo", "directory": "/runs/demo", "steps": 10, "seed": 0},
    "algorithm": {"name": "sft", "learning_rate": 1e-3, "optimizer": {"betas": [0.9, 0.999]}},
    "backend": {"name": "fsdp2", "parallel": {"dp": 1}},
    "data": {"name": "jsonl", "path": "/a.jsonl"},
    "rewards": [{"name": "digits", "weight": 1.0}],
}


def stage(name="train", **changed):
    sections = {section: {**BEFORE[section], **changed.get(section, {})} for section in BEFORE if section != "rewards"}
    sections["rewards"] = changed.get("rewards", BEFORE["rewards"])
    return StageConfig(
        name=name,
        model=None,
        run=type("Run", (), {"steps": sections["run"]["steps"]}),
        algorithm=None,
        backend=None,
        generator=None,
        tokenizer=None,
        data=None,
        eval_data=None,
        rewards=(),
        evaluators=(),
        loggers=(),
        resolved=sections,
    )


def config(*stages):
    return RunConfig("demo", "/runs/demo", stages, {}, multi_stage=len(stages) > 1)


def test_every_changed_value_is_found_and_those_that_corrupt_say_why():
    new = stage(
        run={"seed": 3, "steps": 20, "directory": "/elsewhere"},
        algorithm={"learning_rate": 1e-4},
        backend={"parallel": {"dp": 2}},
        data={"path": "/b.jsonl"},
        rewards=[{"name": "digits", "weight": 2.0}],
        model={"max_length": 128},
    )
    found = changes(config(stage()), config(new), trained=["train"])
    assert [(str(c).strip(), c.reason) for c in found] == [
        ("model.max_length: 64 → 128", ""),
        ("run.steps: 10 → 20", ""),
        ("run.seed: 0 → 3", "rows already trained on would come again, others never"),
        ("algorithm.learning_rate: 0.001 → 0.0001", ""),
        ("backend.parallel.dp: 1 → 2", ""),
        ("data.path: /a.jsonl → /b.jsonl", "the checkpoint's position counts rows of other data"),
        ("rewards.0.weight: 1.0 → 2.0", ""),
    ]


def test_a_stage_that_has_not_trained_yet_may_change_in_every_way():
    old = config(stage("sft"), stage("rl"))
    new = config(stage("sft", run={"seed": 1}), stage("rl", run={"seed": 1}))
    assert [(c.key, bool(c.reason)) for c in changes(old, new, trained=["sft"])] == [
        ("stages.sft.run.seed", True),
        ("stages.rl.run.seed", False),
    ]


def test_a_stage_that_has_trained_cannot_be_left_out():
    found = changes(config(stage("sft"), stage("rl")), config(stage("rl")), trained=["sft"])
    assert [(str(c).strip(), c.reason) for c in found] == [
        ("stages: sft, rl → rl", "what stage 'sft' trained would be left out")
    ]


def test_what_would_corrupt_is_refused_with_the_difference_and_the_way_to_allow_it(caplog):
    new = stage(run={"seed": 3}, algorithm={"learning_rate": 1.0}, data={"path": "/b.jsonl"})
    found = changes(config(stage()), config(new), trained=["train"])
    with pytest.raises(ConfigError) as raised:
        refuse_corrupting(found, [], "/runs/demo")
    assert str(raised.value) == (
        "the config has changed since /runs/demo was started, in a way that would corrupt it\n"
        "    run.seed: 0 → 3\n"
        "        rows already trained on would come again, others never\n"
        "    data.path: /a.jsonl → /b.jsonl\n"
        "        the checkpoint's position counts rows of other data\n"
        "    change it back, start a new run, or go on nevertheless with:  "
        "rl resume /runs/demo --allow run.seed --allow data.path"
    )
    assert raised.value.exit_code == 2
    assert caplog.messages == ["changed since the run was started: algorithm.learning_rate: 0.001 → 1.0"]


def test_what_is_allowed_is_shown_and_passes(caplog):
    found = changes(config(stage()), config(stage(data={"path": "/b.jsonl"})), trained=["train"])
    refuse_corrupting(found, ["data"], "/runs/demo")
    assert caplog.messages == ["changed since the run was started: data.path: /a.jsonl → /b.jsonl"]


@pytest.mark.parametrize(
    ("key", "allowed", "expected"),
    [
        ("data.path", "data.path", True),
        ("data.path", "data", True),
        ("data", "data.path", False),
        ("data_other", "data", False),
        ("stages.sft.data.path", "data", True),
        ("stages.sft.data.path", "stages.sft", True),
        ("stages.sft.data.path", "stages.rl", False),
    ],
)
def test_allow_names_a_key_or_what_is_above_it(key, allowed, expected):
    assert is_allowed(key, [allowed]) is expected


def saved(folder: Path, step: int, fingerprint: str = "abc") -> Path:
    state = RunState(stage="train", step=step, position=step, weights_version=step, fingerprint=fingerprint)
    return CheckpointStore(folder).save(state, lambda _: None)


def test_a_dataset_that_changed_under_a_run_is_noticed(tmp_path):
    latest = saved(tmp_path, 3)
    with pytest.raises(RLError) as raised:
        starting_point(stage(), latest, fingerprint="xyz", directory=Path("/runs/demo"))
    assert str(raised.value) == (
        f"the training data of stage 'train' has changed since the checkpoint {latest}\n"
        "    restore the data, start a new run from the export, or go on with the new data with:  "
        "rl resume /runs/demo --allow data"
    )
    state = starting_point(stage(), latest, fingerprint="xyz", directory=Path("/runs/demo"), allowed=["data"])
    assert state.step == 3


def test_a_resume_beyond_the_last_step_would_train_nothing_and_is_refused(tmp_path):
    with pytest.raises(RLError) as raised:
        starting_point(stage(), saved(tmp_path, 12), fingerprint="abc", directory=Path("/runs/demo"))
    assert str(raised.value) == (
        "nothing to train: stage 'train' is at step 12 already, run.steps is 10\n"
        "    train on with: rl resume /runs/demo run.steps=MORE_THAN_12"
    )
    assert raised.value.exit_code == 1
    assert starting_point(stage(), None, fingerprint="abc", directory=Path("/runs/demo")) is None


@pytest.mark.parametrize(
    ("step", "logged", "said"),
    [
        (6, 6, "train: continuing from {}; nothing is lost"),
        (6, 7, "train: continuing from {}; step 7 is lost and will be run again"),
        (6, 9, "train: continuing from {}; steps 7 to 9 are lost and will be run again"),
        (10, 10, "train: nothing is left to train; its model is exported from {}"),
    ],
)
def test_a_resume_says_where_it_continues(tmp_path, caplog, step, logged, said):
    latest = saved(tmp_path, step)
    state = starting_point(stage(), latest, fingerprint="abc", directory=tmp_path)
    with caplog.at_level(logging.INFO, logger="rl"):
        announce(stage(), latest, state, logged=logged)
    assert caplog.messages == [said.format(latest)]


def test_a_stage_has_trained_once_it_has_a_checkpoint_or_has_finished(tmp_path):
    assert not has_trained(tmp_path)
    saved(tmp_path / "checkpoints", 1)
    assert has_trained(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "finished.json").write_text('{"steps": 1}')
    assert has_trained(tmp_path / "other")
