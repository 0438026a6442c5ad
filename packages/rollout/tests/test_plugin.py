"""How core finds the rollout source, and what a config without one says."""

from __future__ import annotations

import pytest
from rl_core.component import Component
from rl_core.config.sections import ComponentConfig
from rl_core.discovery.registry import load_registry
from rl_core.hookspecs import hookimpl
from rl_core.preflight.check import check
from rl_plugin_kit.suites import RolloutConformance

CONFIG = """\
model: {path: org/base, max_length: 64}
algorithm: {name: grpo}
backend: {name: fsdp2}
data: {name: jsonl, path: rows.jsonl}
generator: {name: hf, max_new_tokens: 8}
rewards: [{name: exact_match}]
evaluators: [{name: accuracy, max_new_tokens: 8}]
eval_data: {name: jsonl, path: rows.jsonl}
run: {name: demo, steps: 2}
"""
SUPERVISED = """\
model: {path: org/base, max_length: 64}
algorithm: {name: sft}
backend: {name: fsdp2}
data: {name: jsonl, path: rows.jsonl}
run: {name: demo, steps: 2}
"""


@pytest.fixture
def problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2", "answer": "2"}\n')

    def of(text, registry=None):
        (tmp_path / "c.yaml").write_text(text)
        return check("c.yaml", [], registry or load_registry())

    return of


class TestStandard(RolloutConformance):
    component = "standard"

    @pytest.mark.slow
    def test_a_tiny_run_continues_exactly_where_it_stopped(self, tmp_path):
        super().test_a_tiny_run_continues_exactly_where_it_stopped(tmp_path)

    @pytest.mark.slow
    def test_a_ray_worker_receives_its_config_and_builds_it(self):
        super().test_a_ray_worker_receives_its_config_and_builds_it()


def test_a_stage_that_samples_has_the_source_that_is_installed_and_writes_it_down(problems):
    result = problems(CONFIG)
    assert result.config is not None, result.problems
    (stage,) = result.config.stages
    assert (stage.rollout.name, stage.rollout.package) == ("standard", "rl-rollout")
    assert result.config.document["rollout"] == {"name": "standard"}


def test_without_a_package_that_samples_the_config_says_what_to_install(problems):
    blocked = load_registry({"RL_DISABLE_PLUGINS": "rl-rollout"})
    (problem,) = problems(CONFIG, blocked).problems
    assert str(problem).startswith("c.yaml:5: rollout: no package that makes and scores completions is installed\n")
    assert "RL_DISABLE_PLUGINS" in str(problem)
    blocked.plugins = tuple(one for one in blocked.plugins if one.package != "rl-rollout")
    (problem,) = problems(CONFIG, blocked).problems
    assert str(problem).endswith("\n    pip install rl-rollout")


def test_a_stage_that_samples_nothing_needs_no_such_package(problems):
    result = problems(SUPERVISED, load_registry({"RL_DISABLE_PLUGINS": "rl-rollout"}))
    assert result.config is not None, result.problems
    assert result.config.stages[0].rollout is None
    (problem,) = problems(SUPERVISED + "rollout: {name: standard}\n").problems
    assert "nothing reads 'rollout': no selected component generates" in str(problem)


class OtherConfig(ComponentConfig):
    """Of another source."""


class Other:
    """A package with a source of its own."""

    @hookimpl
    def register_rollouts(self):
        reference = f"{__name__}:OtherConfig"
        return [Component("rollout", "streamed", factory=reference, config=reference, summary="")]


def test_between_several_sources_the_section_chooses(problems, monkeypatch):
    registry = load_registry()
    found = registry.components
    mine = Other().register_rollouts()[0]
    registered = type(found("rollout")[0])(mine, "rl-streamed", "1.0")
    monkeypatch.setattr(registry, "components", lambda kind=None: found(kind) + [registered] * (kind == "rollout"))
    monkeypatch.setattr(registry, "resolve", lambda ref: OtherConfig if ref == mine.config else None or resolve(ref))
    resolve = type(registry).resolve.__get__(registry)
    (problem,) = problems(CONFIG, registry).problems
    assert str(problem) == (
        "c.yaml:5: rollout: 2 packages make and score completions, and one is to be chosen\n"
        "    rollout: {name: rl-rollout/standard or rl-streamed/streamed}"
    )
    result = problems(CONFIG + "rollout: {name: streamed}\n", registry)
    assert result.config is not None, result.problems
    assert result.config.stages[0].rollout.package == "rl-streamed"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "hf, max_new_tokens: 8",
            "hf, max_new_tokens: 64",
            "c.yaml:5: generator.max_new_tokens: max_new_tokens 64 leaves",
        ),
        (
            "accuracy, max_new_tokens: 8",
            "accuracy, max_new_tokens: 64",
            "c.yaml:7: evaluators.0.max_new_tokens: max_new",
        ),
    ],
)
def test_completions_that_leave_no_room_for_a_prompt_are_found_in_their_line(old, new, message, problems):
    (problem,) = problems(CONFIG.replace(old, new)).problems
    assert str(problem).startswith(message)
    assert "no room for a prompt in model.max_length 64" in str(problem)
