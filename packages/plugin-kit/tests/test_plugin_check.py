"""``rl plugin check``."""

from __future__ import annotations

import pytest
from rl_core.cli.main import main
from rl_core.component import Component
from rl_plugin_kit.commands.check import parse_settings

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "one", "rl_x_one.parts:One", "rl_x_one.parts:Config", "One", imports=({imports}))]
"""
PARTS = """
from pydantic import Field
from rl_core.config.sections import RewardConfig

class Config(RewardConfig):
    target: int = Field(1{description})

class One:
    def __init__(self, config):
        self.target = config.target

    def score(self, samples):
        return [float(self.target)] * len(samples)
"""


@pytest.fixture
def plugin(install):
    def plugin(*, imports: str = "", description: str = ", description='Wanted.'") -> str:
        install("rl-x-one", PLUGIN.format(imports=imports), files={"parts.py": PARTS.format(description=description)})
        return "rl-x-one"

    return plugin


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_package_that_keeps_every_rule_is_ok(plugin, capsys):
    assert main(["plugin", "check", "--quick", plugin()]) == 0
    printed = capsys.readouterr()
    assert rows(printed.out)[4:] == [
        "plugin is discovered ok",
        "importing the plugin module is light ok",
        "importing the config models is light ok",
        "references resolve ok",
        "config models have the right base ok",
        "every config field is described ok",
        "config models have a json schema ok",
        "config defaults survive a round trip ok",
        "configs refuse unknown keys ok",
        "bad values are refused by name ok",
        "configs can be sent to another process ok",
        "components can be built twice in one process ok",
        "hook implementations have no default arguments ok",
        "",
        "rl-x-one ok",
    ]
    assert printed.err == ""


def test_a_broken_rule_is_shown_with_its_reason_and_exit_code_1(plugin, capsys):
    assert main(["plugin", "check", "--quick", plugin(description="")]) == 1
    printed = capsys.readouterr()
    text = " ".join(printed.out.split())
    assert (
        "every config field is described failed rl-x-one: reward 'one': field Config.target has no description; give it"
    ) in text
    assert printed.err == "rl-x-one breaks 1 of 13 rules\n"


def test_what_needs_a_module_that_is_not_installed_is_skipped(plugin, capsys):
    assert main(["plugin", "check", "--quick", plugin(imports="'unheard_of',")]) == 0
    printed = capsys.readouterr().out
    assert "references resolve skipped not checked: reward 'one' needs unheard_of" in rows(printed)
    assert printed.endswith("\nrl-x-one ok, 1 not checked completely\n")


def test_a_package_that_is_not_installed_gets_a_proposal(plugin, capsys):
    plugin()
    assert main(["plugin", "check", "rl-x-ome"]) == 2
    assert capsys.readouterr().err == "error: no plugin package 'rl-x-ome' is installed\n    did you mean 'rl-x-one'?\n"


def test_the_name_is_compared_as_pip_compares_it(plugin, capsys):
    plugin()
    assert main(["plugin", "check", "--quick", "RL_X.one"]) == 0
    assert capsys.readouterr().out.endswith("\nRL_X.one ok\n")


@pytest.mark.slow
def test_the_promises_of_each_component_follow_the_rules_of_the_package(plugin, cluster, capsys):
    assert main(["plugin", "check", plugin()]) == 1
    said = capsys.readouterr()
    printed = rows(said.out)
    start = printed.index("reward one")
    assert printed[start + 4 :] == [
        "a ray worker receives its config and builds it ok",
        "a tiny run continues exactly where it stopped failed reward 'rl-x-one/one': a tiny run needs an algorithm "
        "that learns from rollouts, and none is installed: pip install rl-algo-grpo",
        "no method has almost the name of one that is called ok",
        "every sample gets one finite score ok",
        "no samples have no scores ok",
        "scores belong to their samples ok",
        "it can be built again after it was closed ok",
        "",
    ]
    assert said.err == "rl-x-one breaks 1 of 20 rules\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "one.target",
            "--set 'one.target' is not of the form NAME.FIELD=VALUE\n    for example --set jsonl.path=rows.jsonl",
        ),
        ("two.target=1", "--set 'two.target=1': there is no component 'two'\n    it offers: one"),
        (
            "one.target=x",
            "--set: one.target: Input should be a valid integer\n    `rl schema` has all fields",
        ),
    ],
)
def test_a_wrong_setting_is_not_blamed_on_the_plugin(plugin, capsys, given, message):
    assert main(["plugin", "check", "--quick", plugin(), "--set", given]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_settings_are_yaml_and_may_name_the_kind():
    components = [Component("reward", "one", "a:B", "a:C", ""), Component("logger", "one", "a:B", "a:C", "")]
    assert parse_settings(["one.a=[1, x]", "logger/one.b=2", "one.c="], components) == {
        "one": {"a": [1, "x"], "c": None},
        "logger/one": {"b": 2},
    }
