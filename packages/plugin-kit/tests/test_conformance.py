"""The conformance kit accepts a good plugin and names what is wrong with each bad one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rl_plugin_kit import conformance
from rl_plugin_kit.conformance import PluginConformance

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "length", "rl_x_kit.reward:Length", "rl_x_kit.config:LengthConfig", "Length")]

@hookimpl
def on_run_end(status):
    pass
"""

CONFIG = """
from pydantic import Field
from rl_core.config.sections import RewardConfig, Section

class Limits(Section):
    low: int = Field(0, description="Shortest.")

class LengthConfig(RewardConfig):
    target: int = Field(10, ge=1, description="Wanted number of tokens.")
    limits: Limits | None = Field(None, description="Bounds.")
"""

REWARD = """
class Length:
    def __init__(self, config):
        self.config = config

    def score(self, samples):
        return [float(len(sample.completion)) for sample in samples]
"""

CHECKS = [
    getattr(conformance, name)
    for name in (
        "check_discovery",
        "check_light_import",
        "check_light_configs",
        "check_references",
        "check_config_bases",
        "check_field_descriptions",
        "check_json_schemas",
        "check_config_round_trips",
        "check_hook_signatures",
    )
]


@pytest.fixture
def kit(install):
    def kit(*, plugin: str = PLUGIN, config: str = CONFIG, reward: str = REWARD, **files: str) -> str:
        sources = {"config.py": config, "reward.py": reward, **{f"{name}.py": text for name, text in files.items()}}
        install("rl-x-kit", plugin, files=sources)
        return "rl-x-kit"

    return kit


def failures(package: str) -> dict[str, str]:
    """Check → its message, for the checks that fail."""
    found = {}
    for check in CHECKS:
        try:
            check(package)
        except AssertionError as error:
            found[check.__name__] = str(error)
    return found


def test_a_good_plugin_passes_every_check(kit):
    assert failures(kit()) == {}


def test_the_core_conforms_to_its_own_rules(site):
    assert failures("rl-core") == {}


def test_a_package_that_is_not_installed_is_named(site):
    with pytest.raises(AssertionError) as caught:
        conformance.check_discovery("rl-x-absent")
    assert str(caught.value) == (
        "rl-x-absent: no entry point in the group 'rl_core.plugins' is installed; "
        "check [project.entry-points] in pyproject.toml and install the package"
    )


def test_a_heavy_import_in_the_plugin_module_is_named(kit):
    package = kit(plugin="from . import helper\n" + PLUGIN, helper="import pydantic\n")
    assert failures(package) == {
        "check_light_import": "rl-x-kit: importing rl_x_kit.plugin imports pydantic; "
        "move the import into the factory's module"
    }


def test_a_heavy_import_in_the_config_module_is_named(kit, site):
    (site / "vllm").mkdir()
    (site / "vllm" / "__init__.py").write_text("")
    assert failures(kit(config="import vllm\n" + CONFIG)) == {
        "check_light_configs": "rl-x-kit: importing rl_x_kit.config imports vllm; "
        "a config module imports pydantic and rl_core.config only"
    }


def test_an_estimate_of_memory_is_light_and_a_function(kit, site):
    (site / "vllm").mkdir()
    (site / "vllm" / "__init__.py").write_text("")
    offers = PLUGIN.replace('"Length")', '"Length", memory_estimate="rl_x_kit.helper:estimate")')
    assert failures(kit(plugin=offers, helper="import vllm\nestimate = 3\n")) == {
        "check_light_configs": "rl-x-kit: importing rl_x_kit.helper imports vllm; "
        "memory is estimated from sizes alone, without a model",
        "check_references": "rl-x-kit: reward 'length': memory_estimate 'rl_x_kit.helper:estimate' is not callable",
    }


def test_a_factory_that_does_not_exist_is_named(kit):
    assert failures(kit(reward="x = 1\n")) == {
        "check_references": "rl-x-kit: reward 'length': rl-x-kit: module 'rl_x_kit.reward' has no 'Length'\n"
        "    pip install --upgrade rl-x-kit"
    }


def test_a_factory_that_cannot_be_called_is_named(kit):
    assert failures(kit(reward="Length = 3\n")) == {
        "check_references": "rl-x-kit: reward 'length': factory 'rl_x_kit.reward:Length' is not callable"
    }


def test_a_factory_whose_modules_are_not_installed_is_skipped_and_said_so(kit):
    source = PLUGIN.replace('"Length")', '"Length", imports=("unheard_of",))')
    package = kit(plugin=source, reward="import unheard_of\n")
    assert conformance.check_references(package) == ("reward 'length' needs unheard_of",)
    assert failures(package) == {}


def test_a_config_with_the_wrong_base_is_named(kit):
    package = kit(config=CONFIG.replace("RewardConfig", "ComponentConfig"))
    assert failures(package) == {
        "check_config_bases": "rl-x-kit: reward 'length': 'rl_x_kit.config:LengthConfig' must derive from "
        "rl_core.config.sections.RewardConfig"
    }


def test_a_config_that_is_no_model_is_named(kit):
    assert failures(kit(config="LengthConfig = dict\n"))["check_config_bases"] == (
        "rl-x-kit: reward 'length': 'rl_x_kit.config:LengthConfig' is not a pydantic model"
    )


@pytest.mark.parametrize(
    ("description", "field"),
    [(', description="Wanted number of tokens."', "LengthConfig.target"), (', description="Shortest."', "Limits.low")],
)
def test_a_field_without_a_description_is_named_also_in_nested_models(kit, description, field):
    assert failures(kit(config=CONFIG.replace(description, ""))) == {
        "check_field_descriptions": f"rl-x-kit: reward 'length': field {field} has no description; "
        "give it one with Field(description=...)"
    }


def test_a_config_without_a_json_schema_is_named(kit):
    config = CONFIG.replace("target: int = Field(10, ge=1,", "target: Odd = Field(Odd(),") + "\n"
    config = config.replace("class Limits", "class Odd:\n    pass\n\nclass Limits").replace(
        "class LengthConfig(RewardConfig):", "class LengthConfig(RewardConfig, arbitrary_types_allowed=True):"
    )
    message = failures(kit(config=config))["check_json_schemas"]
    assert message.startswith("rl-x-kit: reward 'length': LengthConfig has no JSON schema: ")


def test_defaults_that_do_not_survive_json_are_named(kit):
    config = CONFIG + (
        "    seen: int = Field(0, description='Counts.')\n\n"
        "    def __eq__(self, other):\n        return False\n\n    __hash__ = None\n"
    )
    assert failures(kit(config=config)) == {
        "check_config_round_trips": "rl-x-kit: reward 'length': LengthConfig changes on a trip through JSON"
    }


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "Field(10, ge=1,",
            "Field(0, ge=1,",
            "LengthConfig.target is 0, which is not valid: Input should be greater than or equal to 1",
        ),
        (
            "low: int = Field(0,",
            "low: int = Field('zero',",
            "Limits.low is 'zero', which is not valid: "
            "Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_a_default_that_is_not_valid_is_named_also_in_nested_models(kit, old, new, text):
    assert failures(kit(config=CONFIG.replace(old, new))) == {
        "check_config_round_trips": f"rl-x-kit: reward 'length': the default of {text}"
    }


def test_defaults_that_contradict_each_other_are_named(kit):
    config = CONFIG.replace("import Field", "import Field, model_validator") + (
        "\n    @model_validator(mode='after')\n    def _together(self):\n"
        "        if self.limits is None:\n            raise ValueError('give limits')\n        return self\n"
    )
    message = failures(kit(config=config))["check_config_round_trips"]
    assert message.startswith("rl-x-kit: reward 'length': LengthConfig cannot be built from its defaults: ")
    assert "give limits" in message


def test_a_model_may_refuse_a_default_that_is_spelled_out_without_effect(kit):
    config = CONFIG.replace("import Field", "import Field, model_validator") + (
        "\n    @model_validator(mode='after')\n    def _effect(self):\n"
        "        if self.limits is None and 'target' in self.model_fields_set:\n"
        "            raise ValueError('target has no effect without limits')\n        return self\n"
    )
    assert failures(kit(config=config)) == {}


def test_a_config_with_required_fields_needs_no_round_trip(kit):
    assert failures(kit(config=CONFIG.replace("Field(10, ge=1,", "Field(ge=1,"))) == {}


def test_a_hook_argument_with_a_default_is_named(kit):
    assert failures(kit(plugin=PLUGIN.replace("on_run_end(status)", "on_run_end(status='finished')"))) == {
        "check_hook_signatures": "rl-x-kit: hook on_run_end gives its argument 'status' a default, "
        "so it would always get the default; remove it"
    }


def test_a_plugin_that_does_not_import_is_named(kit):
    found = failures(kit(plugin="raise ValueError('no')\n"))
    assert found["check_discovery"] == (
        "rl-x-kit: plugin 'rl-x-kit' is broken: importing rl_x_kit.plugin failed: ValueError: no (plugin.py:1)"
    )
    assert found["check_light_import"].startswith("rl-x-kit: importing rl_x_kit.plugin failed:\nTraceback")


def test_the_class_is_collected_by_pytest_and_reports_failures_and_skips(kit, site, tmp_path):
    source = PLUGIN.replace('"Length")', '"Length", imports=("unheard_of",))')
    kit(plugin=source, config=CONFIG.replace(', description="Shortest."', ""))
    test = tmp_path / "test_kit.py"
    test.write_text(
        "from rl_plugin_kit.conformance import PluginConformance as Base\n"
        "class TestPlugin(Base):\n    package = 'rl-x-kit'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(test)]
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RL_PLUGINS": "rl-x-kit"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert "1 failed, 11 passed, 1 skipped" in done.stdout
    assert "not checked: reward 'length' needs unheard_of" in done.stdout
    assert "field Limits.low has no description" in done.stdout


class TestCore(PluginConformance):
    package = "rl-core"


def test_written_plugins_are_found_through_pythonpath(tmp_path: Path):
    from rl_plugin_kit.packages import write_plugin

    write_plugin(tmp_path, "rl-x-path", files={"plugin.py": PLUGIN}, version="7.1")
    code = "from rl_core.discovery.registry import load_registry; print(load_registry().manifest()['rl-x-path'])"
    environment = {"PATH": "", "PYTHONPATH": str(tmp_path), "RL_PLUGINS": "rl-x-path"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "7.1\n"
