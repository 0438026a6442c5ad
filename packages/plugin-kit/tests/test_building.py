"""The checks of the conformance kit that build configs and components catch what they are there for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rl_plugin_kit import building, conformance

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "length", "rl_x_kit.reward:Length", "rl_x_kit.config:LengthConfig", "Length"{imports})]
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
"""


@pytest.fixture
def kit(install) -> Callable[..., str]:
    def kit(*, config: str = CONFIG, reward: str = REWARD, imports: str = "") -> str:
        install("rl-x-kit", PLUGIN.format(imports=imports), files={"config.py": config, "reward.py": reward})
        return "rl-x-kit"

    return kit


def failures(package: str, settings: building.Settings | None = None) -> dict[str, str]:
    """Check → its message, for the checks that fail."""
    checks = {
        "keys": lambda: building.check_unknown_keys(package),
        "refusals": lambda: building.check_refusals(package, settings),
        "pickling": lambda: building.check_pickling(package, settings),
        "twice": lambda: building.check_building_twice(package, settings),
    }
    found = {}
    for name, check in checks.items():
        try:
            check()
        except AssertionError as error:
            found[name] = str(error)
    return found


def test_a_good_plugin_passes(kit):
    assert failures(kit()) == {}


@pytest.mark.parametrize(
    ("old", "new", "model"),
    [
        ("LengthConfig(RewardConfig)", "LengthConfig(RewardConfig, extra='allow')", "LengthConfig"),
        ("Limits(Section)", "Limits(Section, extra='ignore')", "Limits"),
    ],
)
def test_a_config_that_accepts_unknown_keys_is_named_also_in_nested_models(kit, old, new, model):
    assert failures(kit(config=CONFIG.replace(old, new))) == {
        "keys": f"rl-x-kit: reward 'length': {model} accepts unknown keys, so a typo in the YAML would change nothing; "
        "derive it from rl_core.config.sections.Section"
    }


@pytest.mark.parametrize(
    "bounds",
    [
        "from pydantic import BaseModel\nclass Limits(BaseModel, extra='forbid'):",
        "from dataclasses import dataclass\n@dataclass\nclass Limits:",
        "from typing import NamedTuple\nclass Limits(NamedTuple):",
        "from typing_extensions import TypedDict\nclass Limits(TypedDict):",
    ],
)
@pytest.mark.parametrize("field", ["Limits | None", "list[Limits] | None", "dict[str, tuple[Limits, ...]] | None"])
def test_a_nested_model_that_is_no_section_is_named(kit, bounds, field):
    config = CONFIG.replace("class Limits(Section):", bounds).replace("Limits | None", field)
    with pytest.raises(AssertionError) as caught:
        conformance.check_config_bases(
            kit(config=config.replace('low: int = Field(0, description="Shortest.")', "low: int"))
        )
    assert str(caught.value) == (
        "rl-x-kit: reward 'length': Limits, of the field LengthConfig.limits, would take true for 1 and 1_000 for "
        "1000; derive it from rl_core.config.sections.Section"
    )


VALIDATOR = """
    @field_validator("target", mode="before")
    @classmethod
    def _wanted(cls, given):
        return {validated}
"""


@pytest.mark.parametrize(
    ("validated", "message"),
    [
        (
            "given + 0",
            "target: None makes LengthConfig crash instead of being refused: TypeError: unsupported operand type(s) "
            "for +: 'NoneType' and 'int' (config.py:15); validators raise ValueError, which names the field and its "
            "line to the user",
        ),
        (
            "5",
            "LengthConfig.target accepts a value of any type, so a mistake in the YAML would only show later; give it "
            "a type, or let its validator raise ValueError",
        ),
    ],
)
def test_a_config_that_does_not_refuse_wrong_values_is_named(kit, validated, message):
    config = CONFIG.replace("import Field", "import Field, field_validator") + VALIDATOR.format(validated=validated)
    assert failures(kit(config=config)) == {"refusals": f"rl-x-kit: reward 'length': {message}"}


def test_a_config_that_cannot_be_pickled_is_named(kit):
    config = CONFIG + "\n    def __reduce__(self):\n        raise TypeError('it holds a lock')\n"
    assert failures(kit(config=config)) == {
        "pickling": "rl-x-kit: reward 'length': its config cannot be pickled for a worker: "
        "TypeError: it holds a lock (config.py:13)"
    }


def test_a_config_that_a_worker_cannot_read_is_named(kit):
    config = CONFIG + (
        "\n    def __setstate__(self, state):\n        import os\n        raise RuntimeError('no such connection')\n"
    )
    assert failures(kit(config=config)) == {
        "pickling": "rl-x-kit: reward 'length': its config cannot be read in a worker: RuntimeError: no such connection"
    }


def test_a_config_that_arrives_changed_is_named(kit):
    config = CONFIG + (
        "\n    def __setstate__(self, state):\n        super().__setstate__(state)\n"
        "        self.__dict__['target'] = 3\n"
    )
    message = failures(kit(config=config))["pickling"]
    assert message == (
        "rl-x-kit: reward 'length': its config arrives changed in a worker: "
        '{"name":"length","weight":1.0,"timeout_s":1800.0,"memory_mb":null,"on_error":"error","target":3,"limits":null}'
    )


def test_a_factory_that_fails_is_named(kit):
    reward = REWARD.replace("self.config = config", "raise ValueError('no model')")
    assert failures(kit(reward=reward)) == {
        "twice": "rl-x-kit: reward 'length': building it failed: ValueError: no model (reward.py:4)"
    }


def test_a_factory_that_works_only_once_is_named(kit):
    reward = "_started = []\n" + REWARD.replace(
        "self.config = config", "assert not _started, 'already started'\n        _started.append(self)"
    )
    assert failures(kit(reward=reward)) == {
        "twice": "rl-x-kit: reward 'length': building it a second time in the same process failed: "
        "AssertionError: already started (reward.py:5)"
    }


def test_a_reward_is_closed_after_it_was_built(kit):
    reward = "open_ones = []\n" + REWARD.replace(
        "self.config = config", "assert not open_ones, 'still open'\n        open_ones.append(self)"
    )
    assert set(failures(kit(reward=reward + "\n    def close(self):\n        open_ones.clear()\n"))) == set()


def test_a_component_whose_modules_are_not_installed_is_not_built(kit):
    reward = REWARD.replace("self.config = config", "import unheard_of")
    assert failures(kit(reward=reward, imports=", imports=('unheard_of',)")) == {}


def test_a_config_with_required_fields_is_built_from_settings(kit):
    package = kit(
        config=CONFIG.replace("Field(10, ge=1,", "Field(ge=1,"),
        reward=REWARD.replace("self.config = config", "assert config.target < 5, config.target"),
    )
    assert failures(package) == {}  # left out
    assert failures(package, {"length": {"target": 4}}) == {}
    assert failures(package, {"length": {"target": 6}}) == {
        "twice": "rl-x-kit: reward 'length': building it failed: AssertionError: 6 (reward.py:4)"
    }
    message = failures(package, {"length": {"target": 0}})["twice"]
    assert message.startswith(
        "rl-x-kit: reward 'length': LengthConfig cannot be built from settings: 1 validation error"
    )


def test_the_class_passes_its_settings_on(kit):
    package = kit(
        config=CONFIG.replace("Field(10, ge=1,", "Field(ge=1,"),
        reward=REWARD.replace("self.config = config", "raise ValueError(config.target)"),
    )
    suite = type("Suite", (conformance.PluginConformance,), {"package": package, "settings": {"length": {"target": 4}}})
    with pytest.raises(AssertionError) as caught:
        suite().test_components_can_be_built_twice_in_one_process()
    assert str(caught.value) == "rl-x-kit: reward 'length': building it failed: ValueError: 4 (reward.py:4)"
