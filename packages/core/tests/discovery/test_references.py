"""Importing what a component refers to, and what to install where that fails."""

from __future__ import annotations

import sys

import pytest
from rl_core.component import Component
from rl_core.discovery.registry import load_registry, missing_imports
from rl_core.errors import EnvironmentProblem

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "x", "rl_x_ref.reward:Reward", "rl_x_ref.config:Config", "s")]
"""

REQUIRES = ["rl-core>=0.1", "needed-thing>=2,<3", "optional_thing>=1 ; extra == 'fast'"]


@pytest.fixture
def resolve(install):
    def with_files(**files: str):
        install("rl-x-ref", PLUGIN, files={f"{name}.py": text for name, text in files.items()}, requires=REQUIRES)
        return load_registry().resolve

    return with_files


def failure(resolve, reference: str) -> str:
    with pytest.raises(EnvironmentProblem) as caught:
        resolve(reference)
    return str(caught.value)


def test_a_reference_is_imported_when_it_is_asked_for(resolve):
    found = resolve(reward="class Reward:\n    class Inner: pass\n")
    assert "rl_x_ref.reward" not in sys.modules
    assert found("rl_x_ref.reward:Reward").__name__ == "Reward"
    assert found("rl_x_ref.reward:Reward.Inner").__name__ == "Inner"


def test_a_missing_requirement_is_named_with_the_version_the_package_asks_for(resolve):
    assert failure(resolve(reward="import needed_thing"), "rl_x_ref.reward:Reward") == (
        "rl-x-ref: rl_x_ref.reward:Reward needs the module 'needed_thing', which is not installed\n"
        '    pip install "needed-thing<3,>=2"'
    )


def test_a_missing_optional_requirement_is_named_with_its_extra(resolve):
    assert failure(resolve(reward="import optional_thing.part"), "rl_x_ref.reward:Reward") == (
        "rl-x-ref: rl_x_ref.reward:Reward needs the module 'optional_thing', which is not installed\n"
        '    pip install "rl-x-ref[fast]"'
    )


def test_a_missing_module_that_no_requirement_mentions_is_named(resolve):
    assert failure(resolve(reward="import unheard_of"), "rl_x_ref.reward:Reward") == (
        "rl-x-ref: rl_x_ref.reward:Reward needs the module 'unheard_of', which is not installed\n"
        "    pip install unheard_of"
    )


def test_a_module_missing_from_the_package_itself_means_a_damaged_installation(resolve):
    assert failure(resolve(), "rl_x_ref.reward:Reward") == (
        "rl-x-ref: 'rl_x_ref.reward:Reward' cannot be imported: no module named 'rl_x_ref.reward'\n"
        "    pip install --force-reinstall rl-x-ref"
    )


def test_a_missing_attribute_is_named(resolve):
    assert failure(resolve(reward="x = 1"), "rl_x_ref.reward:Reward") == (
        "rl-x-ref: module 'rl_x_ref.reward' has no 'Reward'\n    pip install --upgrade rl-x-ref"
    )


def test_any_other_failure_of_the_import_is_shown_with_its_line(resolve):
    assert failure(resolve(reward="\n1 / 0"), "rl_x_ref.reward:Reward") == (
        "rl-x-ref: importing rl_x_ref.reward failed: ZeroDivisionError: division by zero (reward.py:2)\n"
        "    pip install --upgrade rl-x-ref"
    )


def test_the_users_own_module_gets_advice_on_the_path(resolve):
    assert failure(resolve(), "my_rewards:score") == (
        "cannot import 'my_rewards:score': no module named 'my_rewards'\n"
        "    run rl from the folder that holds the module, or add that folder to PYTHONPATH"
    )


def test_a_malformed_reference_is_refused(resolve):
    assert failure(resolve(), "my_rewards.score") == (
        "'my_rewards.score' is not a reference of the form 'package.module:Name'"
    )


def test_missing_imports_are_found_without_importing():
    component = Component(
        "reward", "x", "a:B", "a:C", "s", imports=("json", "unheard_of", "this.part", "unheard_of.part")
    )
    sys.modules.pop("this", None)
    assert missing_imports(component) == ("unheard_of",)
    assert "this" not in sys.modules
