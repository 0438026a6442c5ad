"""What `rl check` says about environments."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest
from rl_core.discovery.registry import load_registry
from rl_core.preflight.check import check
from rl_plan.table import plan_rows

GRPO = """\
    model: {path: org/base, max_length: 64}
    algorithm: {name: grpo, prompts_per_step: 4, group_size: 4}
    backend: {name: fsdp2}
    generator: {name: hf, max_new_tokens: 8}
    data: {name: jsonl, path: rows.jsonl}
    run: {steps: 1}
    rewards: [{name: numeric}]
"""


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """``problems(environment, *replace)``: what is wrong with a GRPO config that has this environment section."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tools.py").write_text("def calculator(expression: str): ...\n\nclass Game: ...\n")
    registry = load_registry()

    def found(environment, old="", new=""):
        text = dedent(GRPO).replace(old, new) + (f"environment: {environment}\n" if environment else "")
        (tmp_path / "c.yaml").write_text(text)
        shown = [str(p) for p in check("c.yaml", [], registry).problems]
        return [re.sub(re.escape(str(tmp_path)) + "/", "", one) for one in shown]

    return found


TOOLS = '{name: tools, tools: ["my_tools.py:calculator"], max_turns: 4}'


def test_a_good_environment_is_fine(problems):
    assert problems(TOOLS) == []
    assert problems('{name: python, class: "my_tools.py:Game"}') == []


def test_an_unknown_tool_gets_the_nearest_one(problems):
    assert problems('{name: tools, tools: ["my_tools.py:calculater"]}') == [
        "c.yaml:8: environment.tools.0: my_tools.py has no 'calculater'\n    did you mean 'calculator'?"
    ]
    assert problems('{name: tools, tools: ["my_tool.py:calculator"]}') == [
        "c.yaml:8: environment.tools.0: there is no file my_tool.py\n    did you mean 'my_tools.py'?"
    ]
    assert problems('{name: tools, tools: ["no_such_package.tools:calculator"]}') == [
        "c.yaml:8: environment.tools.0: there is no Python module 'no_such_package'\n"
        "    install the package that has it, or name a file: path/to/file.py:function"
    ]
    assert problems('{name: python, class: "my_tools.py:game"}') == [
        "c.yaml:8: environment.class: my_tools.py has no 'game'\n    did you mean 'Game'?"
    ]


def test_tools_need_names_of_their_own(problems):
    assert problems('{name: tools, tools: ["my_tools.py:calculator", "os.path:calculator"]}') == [
        "c.yaml:8: environment.tools: 2 tools are called 'calculator'\n    give them different names"
    ]


def test_a_result_must_be_shown(problems):
    assert problems('{name: tools, tools: ["my_tools.py:calculator"], result_text: done}') == [
        "c.yaml:8: environment.result_text: 'done' has no {result}, so the model would never see one"
    ]


def test_an_environment_that_nothing_generates_for_is_refused(problems):
    sft = ("algorithm: {name: grpo, prompts_per_step: 4, group_size: 4}", "algorithm: {name: sft}")
    assert "c.yaml:8: environment: nothing reads 'environment': no selected component generates\n" in "\n".join(
        problems(TOOLS, *sft)
    )
    assert problems(TOOLS, *sft)[-1].endswith(
        "    choose an algorithm that trains on rollouts, such as grpo, or remove it"
    )


def test_turns_that_cannot_fit_the_context_are_refused(problems):
    assert problems('{name: python, class: "my_tools.py:Game", max_tokens_per_turn: 64}') == [
        "c.yaml:8: environment.max_tokens_per_turn: max_tokens_per_turn 64 leaves no room for a prompt in "
        "model.max_length 64\n    set max_tokens_per_turn below 64, or raise model.max_length"
    ]
    assert problems('{name: python, class: "my_tools.py:Game", max_turns: 29}') == [
        "c.yaml:8: environment.max_turns: max_turns 29 can never be reached: with generator.max_new_tokens 8, at most "
        "28 turns fit model.max_length 64, even if all but the last have one token\n"
        "    set max_turns: 28 or lower, lower the tokens of a turn, or raise model.max_length"
    ]
    assert problems('{name: python, class: "my_tools.py:Game", max_turns: 28}') == []


def test_rewards_may_be_left_out_only_where_the_environment_gives_them(problems):
    without = ("rewards: [{name: numeric}]\n", "")
    assert problems('{name: python, class: "my_tools.py:Game"}', *without) == []
    (lacking,) = problems(TOOLS, *without)
    assert lacking.startswith("c.yaml:2: algorithm: algorithm 'grpo' needs the section 'rewards'\n")


def test_lengths_are_those_of_all_turns(problems):
    constant = ("group_size: 4}", "group_size: 4, loss_reduction: constant, constant_length: 8}")
    assert problems("", *constant) == []
    assert problems(TOOLS, *constant) == [
        "c.yaml:2: algorithm.constant_length: constant_length 8 is not environment.max_turns × "
        "generator.max_new_tokens, 32\n    set constant_length: 32, or 1 for sums over tokens"
    ]


def test_the_plan_shows_the_limits_of_a_conversation(problems):
    assert problems(TOOLS) == []
    registry = load_registry()
    config = check("c.yaml", [], registry).config
    rows = dict(plan_rows(config, config.stages[0], registry))
    assert rows["environment"].startswith("tools (rl-env-tools")
    assert rows["conversation"] == "at most 4 × 8 model tokens; with prompt and environment 64"
