from __future__ import annotations

import re

import pytest

DATA = "data: {name: lines, path: train.txt, extra: {value: %s}}"


@pytest.fixture
def value_of(base, config_of):
    """``value_of(text, *overrides)``: what ``text`` becomes as the value of a key."""

    def value(text: str, *overrides: str, more: str = ""):
        config = config_of(base.replace("data: {name: lines, path: train.txt}", DATA % text) + more, *overrides)
        return config.stages[0].data.config.extra["value"]

    return value


@pytest.fixture
def problem_of(base, problems_of):
    return lambda text: problems_of(base.replace("data: {name: lines, path: train.txt}", DATA % text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'${run.steps}'", 10),
        ("'a-${run.steps}-${run.name}'", "a-10-demo"),
        ("'${run.seed}'", 0),
        ("'${run.gpus}/${model.trust_remote_code}/${model.init}'", "0/false/null"),
        ("'${algorithm.name}'", "imitate"),
        ("'${ run.steps }'", 10),
        ("'$${run.steps}'", "${run.steps}"),
        ("'$5 {x} $${'", "$5 {x} ${"),
        ("'${model}'", {"path": "org/base"}),
        ("'${run}'", None),
    ],
)
def test_references_take_the_value_of_another_key(value_of, folder, value, text):
    if value is None:
        value = {"name": "demo", "steps": 10, "directory": str(folder / "runs" / "demo")}
    assert value_of(text) == value


def test_references_see_overrides_and_list_items(value_of):
    more = "loggers: [{name: remote, project: x}, {name: remote, project: '${loggers.0.project}y'}]\n"
    assert value_of("'${loggers.1.project}${run.steps}'", "run.steps=5", more=more) == "xy5"


def test_the_run_directory_is_absolute(value_of, folder):
    assert value_of("'${run.directory}/rows'") == str(folder / "runs" / "demo" / "rows")


def test_environment_variables_are_text(value_of, monkeypatch):
    monkeypatch.setenv("ROWS", "12")
    monkeypatch.delenv("NO_ROWS", raising=False)
    assert value_of("'${env:ROWS}'") == "12"
    assert value_of("'${env:NO_ROWS:a:b}-${env:NO_ROWS:}'") == "a:b-"


def test_text_from_the_environment_becomes_the_number_a_field_wants(config_of, base, monkeypatch):
    monkeypatch.setenv("STEPS", "12")
    assert config_of(base.replace("steps: 10", "steps: '${env:STEPS}'")).stages[0].run.steps == 12


def test_a_whole_section_can_be_taken_over(config_of, base, folder):
    text = base + "eval_data: ${data}\nevaluators: [{name: held}]\n"
    assert config_of(text).stages[0].eval_data.config.path == str(folder / "train.txt")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "'${run.sed}'",
            "'${run.sed}' refers to 'run.sed', which the config does not have\n    did you mean 'run.seed'?",
        ),
        (
            "'${rnu.seed}'",
            "'${rnu.seed}' refers to 'rnu.seed', which the config does not have\n    did you mean 'run.seed'?",
        ),
        (
            "'${xyz}'",
            "'${xyz}' refers to 'xyz', which the config does not have\n"
            "    there are: model, algorithm, backend, data, run",
        ),
        ("'${model.path.x}'", "'${model.path.x}' refers to 'model.path.x', which the config does not have"),
        ("'${model}x'", "'${model}' is a section or a list and cannot be part of a text"),
        ("'${x'", "'${' without a closing '}'\n    write '$${' for the two characters themselves"),
        ("'${env:1X}'", "'1X' is not the name of an environment variable\n    write ${env:NAME}"),
        ("'${stages.sft.export}'", "'${stages.sft.export}' refers to a stage, but the config has no 'stages:'"),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_problem_with_a_suggestion(problem_of, text, problem):
    assert problem_of(text) == [f"c.yaml:4: data.extra.value: {problem}"]


def test_an_unset_variable_is_a_problem(problem_of, monkeypatch):
    monkeypatch.setenv("ACME_TRAIN_FILE", "x")
    monkeypatch.delenv("ACME_TRIAN_FILE", raising=False)
    assert problem_of("'${env:ACME_TRIAN_FILE}'") == [
        "c.yaml:4: data.extra.value: the environment variable 'ACME_TRIAN_FILE' is not set\n"
        "    did you mean 'ACME_TRAIN_FILE'? Otherwise type: export ACME_TRIAN_FILE=…, "
        "or write a default: ${env:ACME_TRIAN_FILE:…}"
    ]


def test_circles_are_reported_once(problems_of, base):
    text = (
        base + "loggers:\n"
        "  - {name: remote, project: '${loggers.1.project}'}\n"
        "  - {name: remote, project: 'x${loggers.0.project}'}\n"
    )
    assert problems_of(text) == [
        "c.yaml:8: loggers.1.project: interpolation goes in a circle: "
        "loggers.0.project → loggers.1.project → loggers.0.project\n    give one of them a value of its own"
    ]


def test_a_section_inside_itself_is_a_circle(problem_of):
    assert problem_of("'${data}'") == [
        "c.yaml:4: data.extra.value: interpolation goes in a circle: data.extra.value → data\n"
        "    give one of them a value of its own"
    ]


def test_a_failed_reference_is_not_reported_again_as_a_wrong_value(problems_of, base):
    assert problems_of(base.replace("steps: 10", "steps: '${run.stepz}'")) == [
        "c.yaml:5: run.steps: '${run.stepz}' refers to 'run.stepz', which the config does not have\n"
        "    did you mean 'run.steps'?"
    ]


def test_text_that_multiplies_is_cut_off(problems_of, base):
    reference = "${data.extra.k%d}"
    keys = "".join(f", k{i}: '{reference % (i - 1) * 20}'" for i in range(1, 6))
    text = base.replace("path: train.txt", "path: train.txt, extra: {k0: xxxxxxxx" + keys + "}")
    assert problems_of(text) == [
        "c.yaml:4: data.extra.k4: the text has more than 200000 characters after interpolation"
    ]


def test_sections_that_multiply_are_cut_off(problems_of, base):
    reference = "'${data.extra.k%d}', "
    keys = "".join(f", k{i}: [{reference % (i - 1) * 10}]" for i in range(1, 9))
    text = base.replace("path: train.txt", "path: train.txt, extra: {k0: [1]" + keys + "}")
    problems = problems_of(text)
    assert problems[0].endswith("interpolation makes more than 20000 values")


STAGES = """
stages:
  - name: a
    data: {extra: {value: '%s'}}
  - name: b
    data: {extra: {value: '%s'}}
"""


def test_stages_refer_to_the_folders_of_earlier_ones(config_of, base, folder):
    config = config_of(base + STAGES % ("${run.steps}", "${stages.a.export}|${stages.a.directory}"))
    a = folder / "runs" / "demo" / "stages" / "a"
    assert config.stages[1].data.config.extra["value"] == f"{a}/export|{a}"


def test_stages_refer_to_their_own_values(config_of, base):
    config = config_of(base + (STAGES % ("${run.seed}", "${run.seed}")) + "    run: {seed: 8}\n")
    assert [stage.data.config.extra["value"] for stage in config.stages] == [0, 8]


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (
            "${stages.b.export}",
            "",
            "c.yaml:9: stages.0.data.extra.value: '${stages.b.export}' refers to a stage that has not run yet\n"
            "    the first stage has none before it",
        ),
        (
            "",
            "${stages.b.export}",
            "c.yaml:11: stages.1.data.extra.value: '${stages.b.export}' refers to a stage that has not run yet\n"
            "    did you mean 'stages.a.export'?",
        ),
        (
            "",
            "${stages.aa.export}",
            "c.yaml:11: stages.1.data.extra.value: '${stages.aa.export}' is not a folder of an earlier stage\n"
            "    did you mean 'stages.a.export'?",
        ),
        (
            "",
            "${stages.a.exports}",
            "c.yaml:11: stages.1.data.extra.value: '${stages.a.exports}' is not a folder of an earlier stage\n"
            "    did you mean 'stages.a.export'?",
        ),
    ],
)
def test_folders_of_later_or_unknown_stages_are_refused(problems_of, base, first, second, problem):
    assert problems_of(base + STAGES % (first, second)) == [problem]


def test_a_bad_reference_in_a_section_that_only_another_stage_reads_is_no_problem(config_of, base):
    text = base + (
        "generator: {name: sampler, max_new_tokens: '${algorithm.group_size}'}\n"
        "stages:\n"
        "  - name: sft\n"
        "  - {name: rl, algorithm: {name: clip, group_size: 5}, rewards: [{name: digits}]}\n"
    )
    assert config_of(text).stages[1].generator.config.max_new_tokens == 5


def test_now_names_the_run_once_and_stays_what_it_was_on_a_reload(base, config_of):
    config = config_of(base + "stages: [{name: a}, {name: b}]\n", "run.name=demo-${now}")
    assert re.fullmatch(r"demo-\d{8}-\d{6}", config.name)
    assert {stage.run.name for stage in config.stages} == {config.name}
    assert f"name: {config.name}" in config.to_yaml()
