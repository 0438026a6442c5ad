"""What a reward-model folder must hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rl_core.errors import EnvironmentProblem
from rl_reward_model.folder import config_problem, folder_problem, learned_positions
from rl_reward_model.reward import ModelReward

TRAIN_ONE = "    give the export of a reward-model stage, or another sequence-classification model with one label"


@pytest.fixture
def changed(folder: str, tmp_path: Path) -> Callable[..., str]:
    """A copy of the model whose config.json has other values."""

    def build(**fields: Any) -> str:
        path = tmp_path / "changed"
        shutil.copytree(folder, path)
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return str(path)

    return build


def test_a_reward_model_has_no_problem(folder: str) -> None:
    assert folder_problem(folder) is None


def test_a_causal_model_is_refused_when_the_reward_is_built(changed: Callable, config: Callable) -> None:
    path = changed(architectures=["Qwen2ForCausalLM"])
    with pytest.raises(EnvironmentProblem) as caught:
        ModelReward(config(path=path))
    assert str(caught.value) == (
        f"reward 'model': {path} is Qwen2ForCausalLM, not a sequence-classification model: it has no score to give\n"
        f"{TRAIN_ONE}"
    )


@pytest.mark.parametrize(("fields", "labels"), [({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3), ({}, 2)])
def test_more_than_one_label_is_refused(fields: dict[str, Any], labels: int) -> None:
    fields = {"architectures": ["LlamaForSequenceClassification"], **fields}
    assert str(config_problem(fields, "org/rm")) == f"org/rm has {labels} labels; a reward model has one\n{TRAIN_ONE}"


def test_models_with_code_of_their_own_may_have_any_class() -> None:
    fields = {"architectures": ["OwnRewardModel"], "num_labels": 1}
    auto_map = {"AutoModelForSequenceClassification": "modeling.OwnRewardModel"}
    assert config_problem(fields | {"auto_map": auto_map}, "org/rm") is None
    assert str(config_problem(fields, "org/rm")).startswith("org/rm is OwnRewardModel, not a sequence-classification")


def test_a_folder_without_a_model_or_a_tokenizer_says_what_it_holds(folder: str, tmp_path: Path) -> None:
    assert str(folder_problem(str(tmp_path))) == (
        f"the folder {tmp_path} is no model: it has no config.json (it holds nothing)\n{TRAIN_ONE}"
    )
    shutil.copy(Path(folder, "config.json"), tmp_path)
    assert str(folder_problem(str(tmp_path))) == (
        f"the folder {tmp_path} has no tokenizer (no tokenizer.json; it holds config.json)\n"
        "    copy the tokenizer files of the model it was trained from there"
    )


def test_a_damaged_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert str(folder_problem(str(tmp_path))) == (
        f"{tmp_path}/config.json is not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)\n    copy or download it again"
    )


def test_only_learned_positions_limit_the_length(folder: str) -> None:
    assert learned_positions(json.loads(Path(folder, "config.json").read_text())) is None
    assert learned_positions({"model_type": "gpt2", "n_positions": 1024}) == 1024
    assert learned_positions({"max_position_embeddings": 512, "alibi": False}) == 512
    assert learned_positions({"text_config": {"max_position_embeddings": 512, "rope_theta": 1e4}}) is None
