from __future__ import annotations

import pytest


@pytest.mark.parametrize("text", ["run.steps", "=5", "run..steps=5", ".a=5", "a b=5", ""])
def test_a_malformed_override_is_a_problem_of_the_command_line(problems_of, base, text):
    assert problems_of(base, text) == [
        f"command line: cannot read the override {text!r}\n    write it as algorithm.group_size=16"
    ]


def test_values_are_yaml(config_of, base):
    config = config_of(
        base,
        "algorithm.learning_rate=3e-4",
        "data.extra={a: [1, x]}",
        "data.on_bad_row=skip",
        "run.checkpoint_every=",
        "loggers=[{name: remote}]",
        "data.path=a=b.txt",
    )
    stage = config.stages[0]
    assert stage.algorithm.config.learning_rate == 3e-4
    assert stage.data.config.extra == {"a": [1, "x"]}
    assert stage.data.config.on_bad_row == "skip"
    assert stage.run.checkpoint_every is None
    assert stage.loggers[0].name == "remote"
    assert stage.data.config.path.endswith("/a=b.txt")


def test_a_value_that_is_no_yaml_says_how_to_quote_it(problems_of, base):
    assert problems_of(base, "data.path=[x") == [
        "command line: data.path: not valid YAML: while parsing a flow sequence "
        "expected ',' or ']', but got '<stream end>'\n    put the value in quotes: '[x'"
    ]


def test_list_items_are_addressed_by_index(config_of, problems_of, base):
    text = base + "loggers: [{name: remote}, {name: remote}]\n"
    loggers = config_of(text, "loggers.1.project=x").stages[0].loggers
    assert [logger.config.project for logger in loggers] == ["p", "x"]
    assert problems_of(text, "loggers.2.project=x", "loggers.remote.project=y") == [
        "command line: loggers.2.project: 'loggers' is a list of 2; '2' is none of its indices",
        "command line: loggers.remote.project: 'loggers' is a list of 2; 'remote' is none of its indices",
    ]


def test_an_override_below_a_plain_value_is_reported(problems_of, base):
    assert problems_of(base, "run.steps.x=1") == ["command line: run.steps.x: 'run.steps' is 10, which has no keys"]


def test_problems_of_overridden_values_point_to_the_command_line_and_come_last(problems_of, base):
    assert problems_of(base + "loggers: 5\n", "run.steps=none", "run.sed=1", "algoritm.x=1") == [
        "c.yaml:6: loggers: must be a list of sections, found 5\n    loggers: [{name: …}]",
        "command line: run.steps: must be a whole number, found 'none'",
        "command line: run.sed: unknown key 'sed' for the section 'run'\n    did you mean 'seed'?",
        "command line: algoritm: unknown section 'algoritm'\n    did you mean 'algorithm'?",
    ]


def test_the_last_override_of_a_key_wins(config_of, base):
    assert config_of(base, "run.steps=1", "run.steps=2").stages[0].run.steps == 2


STAGES = """
stages:
  - name: first
    run: {steps: 1}
    loggers: [{name: remote}]
  - name: second
    loggers: [{name: remote}]
"""


def test_an_override_wins_over_stages_that_set_the_same_key(config_of, base):
    config = config_of(base + STAGES, "run.steps=5")
    assert [stage.run.steps for stage in config.stages] == [5, 5]


@pytest.mark.parametrize("address", ["stages.second", "stages.1"])
def test_one_stage_is_addressed_by_name_or_index(config_of, base, address):
    config = config_of(base + STAGES, f"{address}.run.steps=5")
    assert [stage.run.steps for stage in config.stages] == [1, 5]


def test_an_unknown_stage_is_reported(problems_of, base):
    assert problems_of(base + STAGES, "stages.secnd.run.steps=5", "stages.7.run.steps=5") == [
        "command line: stages.secnd.run.steps: there is no stage 'secnd'\n    did you mean 'second'?",
        "command line: stages.7.run.steps: there is no stage '7'\n    stages: first, second",
    ]
    assert problems_of(base, "stages.a.run.steps=5") == [
        "command line: stages.a.run.steps: the config has no 'stages:'"
    ]


def test_a_section_that_only_stages_have_is_overridden_there(config_of, base):
    text = base.replace("algorithm: {name: imitate}\n", "") + (
        "stages:\n"
        "  - {name: a, algorithm: {name: imitate, rows_per_step: 2}}\n"
        "  - {name: b, algorithm: {name: imitate}}\n"
    )
    config = config_of(text, "algorithm.rows_per_step=5")
    assert [stage.algorithm.config.rows_per_step for stage in config.stages] == [5, 2]


def test_an_override_that_every_stage_hides_is_reported(problems_of, base):
    text = base + "loggers: [{name: remote}]" + STAGES
    assert problems_of(text, "loggers.0.project=x") == [
        "command line: loggers.0.project: has no effect: every stage has its own value there\n"
        "    write stages.NAME.loggers.0.project=…; stages: first, second"
    ]


def test_a_secret_that_is_no_yaml_is_not_shown(problems_of, base):
    (problem,) = problems_of(base, "loggers.0.api_key={hunter22")
    assert "not valid YAML" in problem
    assert "hunter22" not in problem


def test_extends_cannot_be_overridden(problems_of, base):
    assert problems_of(base, "extends=x.yaml") == [
        "command line: extends: unknown section 'extends'\n    'extends' is read from a file only, at its top"
    ]
