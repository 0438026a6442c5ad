"""What `rl check` finds in the reward's section."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from rl_core.config.paths import SourceText
from rl_reward_model.config import ModelRewardConfig

SINGLE_TURN = SimpleNamespace(environment=None)


def test_a_local_path_starts_at_the_config_file_and_a_hub_id_stays() -> None:
    assert ModelRewardConfig(name="model", path=SourceText("./rm", "/runs")).path == "/runs/rm"
    assert ModelRewardConfig(name="model", path="org/reward-model").path == "org/reward-model"


def test_a_good_folder_and_a_hub_id_have_no_problems(config: Callable) -> None:
    assert list(config().problems(SINGLE_TURN)) == []
    assert list(config(path="org/reward-model").problems(SINGLE_TURN)) == []


def test_a_missing_folder_is_a_problem_unless_a_stage_may_still_export_it(config: Callable, tmp_path: Path) -> None:
    (problem,) = config(path=str(tmp_path / "no")).problems(SINGLE_TURN)
    assert str(problem) == (
        f"path: there is no folder {tmp_path / 'no'}\n"
        "    give the export of a reward-model stage, or another sequence-classification model with one label"
    )
    assert list(config(path=str(tmp_path / "stages" / "rm" / "export")).problems(SINGLE_TURN)) == []


def test_a_spread_of_zero_is_refused(config: Callable) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        config(normalize={"mean": 0, "std": 0})


def test_an_environment_is_pointed_out(config: Callable) -> None:
    (problem,) = config(path="org/reward-model").problems(SimpleNamespace(environment="tools"))
    assert (problem.severity, problem.message) == (
        "warning",
        "with an environment the reward model reads the row's prompt and the model's last turn, and nothing of what "
        "was said in between",
    )
