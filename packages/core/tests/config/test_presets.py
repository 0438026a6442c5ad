from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError
from rl_core.config.sections import AlgorithmConfig


class Config(AlgorithmConfig):
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "wide": {"clip": 0.3, "optimizer": {"warmup_steps": 5, "weight_decay": 0.1}}
    }
    clip: float = Field(0.2, description="")


def test_a_preset_fills_in_what_is_not_given():
    config = Config(name="x", preset="wide", optimizer={"warmup_steps": 7})
    assert (config.clip, config.optimizer.warmup_steps, config.optimizer.weight_decay) == (0.3, 7, 0.1)


def test_explicit_fields_win_over_a_preset():
    assert Config(name="x", preset="wide", clip=0.1).clip == 0.1


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ValidationError, match="unknown preset 'wild'; choose one of wide"):
        Config(name="x", preset="wild")
    with pytest.raises(ValidationError, match="unknown preset 'wide'; this algorithm has no presets"):
        AlgorithmConfig(name="x", preset="wide")


def test_a_preset_that_is_no_name_is_refused_like_any_wrong_value():
    for given in ([], {}, 3):
        with pytest.raises(ValidationError) as caught:
            Config(name="x", preset=given)
        assert [(one["loc"], one["msg"]) for one in caught.value.errors()] == [
            (("preset",), "Input should be a valid string")
        ]
