"""The check as a whole: everything at once, and what needs more than one section to see."""

from __future__ import annotations

import logging

import pytest
from rl_core.config.problems import Problem
from rl_core.errors import ConfigError
from rl_core.hookspecs import hookimpl
from rl_core.preflight.check import check, load_config

BAD = """\
model:
  path: org/base
  max_length: 1
run: {name: demo, steps: 10, sed: 1}
algoritm: {name: clip}
algorithm:
  name: clip
  grup_size: 16
  group_size: 1
  learning_rate: fast
backend: {name: tinny}
generator:
  name: sampler
  max_new_tokens: '${algorithm.none}'
data: lines
rewards: {name: digits}
loggers:
  - {name: remote, projct: x}
  - project: y
  - remote
"""

BAD_PROBLEMS = """\
c.yaml:3: model.max_length: must be at least 2, found 1
c.yaml:4: run.sed: unknown key 'sed' for the section 'run'
    did you mean 'seed'?
c.yaml:5: algoritm: unknown section 'algoritm'
    did you mean 'algorithm'?
c.yaml:8: algorithm.grup_size: unknown key 'grup_size' for algorithm 'clip'
    did you mean 'group_size'?
c.yaml:9: algorithm.group_size: must be at least 2, found 1
c.yaml:10: algorithm.learning_rate: must be a number, found 'fast'
c.yaml:11: backend.name: unknown backend 'tinny'
    did you mean 'tiny'? installed: absent, tiny
c.yaml:14: generator.max_new_tokens: '${algorithm.none}' refers to 'algorithm.none', which the config does not have
    there are: algorithm.name, algorithm.grup_size, algorithm.group_size, algorithm.learning_rate
c.yaml:15: data: must be a section with a 'name', found 'lines'
    write {name: lines}
c.yaml:16: rewards: must be a list of sections, found a mapping
    rewards: [{name: …}]
c.yaml:18: loggers.0.projct: unknown key 'projct' for logger 'remote'
    did you mean 'project'?
c.yaml:19: loggers.1: has no 'name', so no logger is selected
    installed: remote
c.yaml:20: loggers.2: must be a section with a 'name', found 'remote'
    write {name: remote}"""


def test_everything_that_is_wrong_is_reported_at_once_in_line_order(run_check):
    result = run_check(BAD)
    assert "\n".join(map(str, result.problems)) == BAD_PROBLEMS
    assert result.config is None


def test_load_config_raises_one_error_with_every_problem(run_check, registry):
    run_check(BAD)
    with pytest.raises(ConfigError) as caught:
        load_config("c.yaml", ["x"], registry)
    assert str(caught.value) == (
        f"c.yaml: 14 problems\n{BAD_PROBLEMS}\n"
        "command line: cannot read the override 'x'\n    write it as algorithm.group_size=16"
    )


def test_a_good_config_selects_components_with_their_packages(config_of, base):
    stage = config_of(base).stages[0]
    assert (stage.backend.kind, stage.backend.name, stage.backend.package) == ("backend", "tiny", "acme-kit")
    assert stage.algorithm.component.factory == "acme_kit:Factory"
    assert (stage.tokenizer.name, stage.loggers, stage.model.path) == ("hf", (), "org/base")
    assert [choice.kind for choice in stage.choices()] == ["algorithm", "backend", "tokenizer", "data_source"]


def test_a_component_can_be_named_with_its_package(config_of, base):
    stage = config_of(base.replace("name: tiny", "name: acme-kit/tiny")).stages[0]
    assert (stage.backend.name, stage.backend.config.name) == ("tiny", "acme-kit/tiny")


def test_missing_sections_are_listed(problems_of):
    assert problems_of("loggers: []\n") == [
        "c.yaml:1: model: the section 'model' is missing\n    model: {path: …}",
        "c.yaml:1: algorithm: the section 'algorithm' is missing\n    algorithm: {name: …}",
        "c.yaml:1: backend: the section 'backend' is missing\n    backend: {name: …}",
        "c.yaml:1: data: the section 'data' is missing\n    data: {name: …}",
        "c.yaml:1: run: the section 'run' is missing\n    run: {steps: 100}",
    ]


def test_a_section_that_a_component_needs_is_asked_for(problems_of, base):
    assert problems_of(base.replace("imitate", "clip")) == [
        "c.yaml:2: algorithm: algorithm 'clip' needs the section 'generator'\n"
        "    generator: {name: …}; installed: sampler",
        "c.yaml:2: algorithm: algorithm 'clip' needs the section 'rewards'\n"
        "    rewards: [{name: …}]; installed: crashing, digits, gone, ordered, shapeless",
    ]


def test_an_empty_list_does_not_count_as_given(problems_of, base):
    text = base.replace("imitate", "clip") + "generator: {name: sampler}\nrewards: []\n"
    assert len(problems_of(text)) == 1


def test_sections_that_nothing_reads_are_refused(problems_of, base):
    text = base + "generator: {name: sampler}\nrewards: [{name: digits}]\n"
    assert problems_of(text) == [
        "c.yaml:6: generator: nothing reads the section 'generator': no selected component needs or uses it\n"
        "    remove it",
        "c.yaml:7: rewards: nothing reads the section 'rewards': no selected component needs or uses it\n    remove it",
    ]
    with_reader = text + "eval_data: {name: lines, path: x}\nevaluators: [{name: held}]\n"
    assert problems_of(with_reader) == []


def test_eval_data_without_evaluators_is_refused(problems_of, base):
    assert problems_of(base + "eval_data: {name: lines, path: x}\n") == [
        "c.yaml:6: eval_data: nothing reads 'eval_data': there are no evaluators\n"
        "    evaluators: [{name: …}]; installed: held; or remove 'eval_data'"
    ]


def test_evaluators_need_eval_data(problems_of, base):
    assert problems_of(base + "evaluators: [{name: held}]\n") == [
        "c.yaml:6: evaluators.0: evaluator 'held' needs the section 'eval_data'\n"
        "    eval_data: {name: …}; installed: lines"
    ]


def test_a_base_section_may_serve_one_stage_and_an_own_one_may_not_idle(problems_of, config_of, base):
    stages = (
        "generator: {name: sampler}\n"
        "stages:\n"
        "  - name: sft\n"
        "  - {name: rl, algorithm: {name: clip}, rewards: [{name: digits}]}\n"
    )
    sft, rl = config_of(base + stages).stages
    assert (sft.generator, rl.generator.name) == (None, "sampler")
    assert problems_of(base + stages.replace("- name: sft", "- {name: sft, generator: {replicas: 2}}")) == [
        "c.yaml:8: stages.0.generator: nothing in stage 'sft' reads the section 'generator': "
        "no selected component needs or uses it\n    remove it, or set it to null in this stage"
    ]


def test_nothing_is_called_unread_while_a_component_is_unknown(problems_of, base):
    assert problems_of(base.replace("imitate", "mystery") + "generator: {name: sampler}\n") == [
        "c.yaml:2: algorithm.name: unknown algorithm 'mystery'\n    installed: clip, imitate"
    ]


def test_modules_that_are_not_installed_are_named_with_the_command(problems_of, base):
    assert problems_of(base.replace("tiny", "absent")) == [
        "c.yaml:3: backend.name: backend 'absent' (package acme-kit) needs the Python module 'no_such_module', "
        "which is not installed\n    pip install no_such_module"
    ]


def test_a_model_from_scratch_needs_a_tokenizer(problems_of, base):
    text = base.replace("path: org/base", "init: {architecture: qwen2, hidden_size: 8, layers: 1, heads: 2}")
    assert problems_of(text) == [
        "c.yaml:1: tokenizer: a model from scratch ('model.init') needs the section 'tokenizer'\n"
        "    tokenizer: {name: …}; installed: hf, letters"
    ]


def test_a_models_own_problems_get_their_line(problems_of, base):
    text = (
        base.replace("name: imitate", "name: clip, minibatches: 9")
        + "generator: {name: sampler}\nrewards: [{name: digits}]\n"
    )
    assert problems_of(text) == ["c.yaml:2: algorithm.minibatches: more than the 4 prompts of a step\n    use fewer"]


def test_a_world_size_that_does_not_work_out_is_the_backends_message(problems_of, base):
    assert problems_of(base, "run.gpus=3") == [
        "c.yaml:3: backend: backend 'tiny': needs an even number of GPUs, the config has 3"
    ]


FAULT = "\n    this is a fault of the package; try: pip install --upgrade acme-kit"


@pytest.mark.parametrize(
    ("reward", "problem"),
    [
        (
            "{name: crashing, divisor: 0}",
            "c.yaml:7: rewards.0: reward 'crashing' (package acme-kit 1.2): its config cannot be read: "
            f"ZeroDivisionError: integer division or modulo by zero{FAULT}",
        ),
        (
            "{name: crashing}",
            "c.yaml:7: rewards.0: reward 'crashing' (package acme-kit 1.2): problems() failed: "
            f"AttributeError: 'StageConfig' object has no attribute 'nothing'{FAULT}",
        ),
        (
            "{name: shapeless}",
            "c.yaml:7: rewards.0: reward 'shapeless' (package acme-kit 1.2): its config cannot be read: TypeError: "
            f"acme_kit:NoComponentConfig does not derive from rl_core.config.sections.RewardConfig{FAULT}",
        ),
        (
            "{name: gone}",
            "c.yaml:7: rewards.0: acme-kit: module 'acme_kit' has no 'GoneConfig'\n    pip install --upgrade acme-kit",
        ),
        ("{name: ordered, low: 2}", "c.yaml:7: rewards.0: low 2.0 is above high 1.0"),
    ],
)
def test_a_plugin_that_fails_is_a_problem_that_names_its_package(problems_of, base, reward, problem):
    text = base.replace("imitate", "clip") + f"generator: {{name: sampler}}\nrewards: [{reward}]\n"
    assert problems_of(text) == [problem]


def test_hooks_see_every_stage_and_their_problems_get_a_line(problems_of, base, hooks):
    hooks.found = [
        Problem("run.steps", "too few", "use more"),
        Problem("data.quality", "unknown"),
        Problem("", "just a thought", severity="warning"),
    ]
    assert problems_of(base + "stages:\n  - name: a\n  - {name: b, run: {steps: 3}}\n") == [
        "c.yaml:4: data.quality: unknown",
        "c.yaml:5: run.steps: too few\n    use more",
        "c.yaml:7: stages.0: just a thought",
        "c.yaml:8: stages.1.run.steps: too few\n    use more",
        "c.yaml:8: stages.1: just a thought",
    ]
    assert hooks.seen == ["a", "b"]


def test_a_failing_hook_is_a_problem_that_names_its_package(problems_of, base, hooks):
    hooks.error = RuntimeError("no idea")
    assert problems_of(base) == [
        f"c.yaml:1: package acme-kit: its hook validate_config failed: RuntimeError: no idea{FAULT}"
    ]
    hooks.error, hooks.found = None, ["text"]
    assert problems_of(base) == [
        "c.yaml:1: package acme-kit: its hook validate_config failed: TypeError: "
        f"expected rl_core.config.problems.Problem, got str{FAULT}"
    ]


def test_a_warning_is_shown_and_does_not_fail(run_check, base, hooks, registry, caplog):
    hooks.found = [Problem("run.steps", "rather few", severity="warning")]
    result = run_check(base)
    assert result.config is not None
    assert [(str(p), p.severity) for p in result.problems] == [("c.yaml:5: run.steps: rather few", "warning")]
    with caplog.at_level(logging.WARNING):
        load_config("c.yaml", [], registry)
    assert caplog.messages == ["c.yaml:5: run.steps: rather few"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nothing.yaml", "nothing.yaml: cannot read 'nothing.yaml': there is no such file"),
        (".", ".: cannot read '.': it is a directory\n    name a YAML file in it"),
        ("a\0b", "a\0b: cannot read 'a\0b': embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(folder, registry, path, problem):
    assert [str(p) for p in check(path, ["oops"], registry).problems] == [
        problem,
        "command line: cannot read the override 'oops'\n    write it as algorithm.group_size=16",
    ]


def test_a_value_where_a_section_belongs_is_reported(problems_of, base):
    assert problems_of(base.replace("{name: demo, steps: 10}", "5").replace("{path: org/base}", "org/base")) == [
        "c.yaml:1: model: must be a section of keys, found 'org/base'",
        "c.yaml:5: run: must be a section of keys, found 5",
    ]


def test_auto_without_the_package_that_chooses_says_what_to_install(problems_of, base):
    assert problems_of(base.replace("name: tiny", "name: auto")) == [
        "c.yaml:3: backend.name: the backend 'auto' is chosen by rl-plan, which is not installed\n"
        "    pip install rl-plan, or name a backend; installed: absent, tiny"
    ]


class Plans:
    """A plugin with the hook ``plan_run``."""

    def __init__(self, answer):
        self.answer = answer

    @hookimpl
    def plan_run(self, draft):
        return self.answer(draft)


class TestPlans:
    @pytest.fixture
    def more_plugins(self):
        return (Plans(lambda draft: (draft.multi_stage, [stage.tree.name for stage in draft.stages])),)

    def test_a_plan_is_kept_for_a_config_without_errors(self, run_check, base):
        assert run_check(base).plans == ((False, ["train"]),)


class TestFailingPlans:
    @pytest.fixture
    def more_plugins(self):
        return (Plans(len),)

    def test_a_hook_that_fails_is_a_problem_that_names_the_package(self, problems_of, base):
        assert problems_of(base) == [
            "c.yaml:1: package acme-planner: its hook plan_run failed: TypeError: object of type 'Draft' has no len()\n"
            "    this is a fault of the package; try: pip install --upgrade acme-planner"
        ]
