"""A model's folder is compared with its config.json before anything is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from rl_core.errors import EnvironmentProblem
from rl_huggingface.model_folder import check_model_folder

CONFIG = {"model_type": "qwen2", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
TENSORS = {
    "model.embed_tokens.weight": [8, 4],
    "lm_head.weight": [8, 4],
    **{f"model.layers.{number}.mlp.up_proj.weight": [6, 4] for number in range(2)},
}


@pytest.fixture
def folder(tmp_path: Path):
    """``folder(config, tensors)``: a model of zeros, written by hand."""

    def write(config: dict[str, Any], tensors: dict[str, list[int]], dtype: str = "BF16") -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        header, end = {}, 0
        for name, (rows, columns) in tensors.items():
            size = rows * columns * (1 if dtype == "U8" else 2)
            header[name] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
        return str(tmp_path)

    return write


def without(name: str) -> dict[str, list[int]]:
    return {key: shape for key, shape in TENSORS.items() if key != name}


@pytest.mark.parametrize(
    ("config", "tensors", "reason"),
    [
        ({"vocab_size": 9}, {}, "model.embed_tokens.weight is [8, 4], not [9, 4]"),
        ({"hidden_size": 8}, {}, "model.embed_tokens.weight is [8, 4], not [8, 8]"),
        ({"intermediate_size": 6}, {"model.layers.0.mlp.down_proj.weight": [4, 7]}, "weight is [4, 7], not [4, 6]"),
        ({}, {"lm_head.weight": [2, 4]}, "lm_head.weight is [2, 4], not [8, 4]"),
        ({"num_hidden_layers": 4}, {}, "the folder lacks the weights of the layers 2, 3 (num_hidden_layers: 4)"),
        ({"num_hidden_layers": 9}, {}, "the folder lacks the weights of the layers 2, 3, 4, 5, 6, …"),
        ({"num_hidden_layers": 1}, {}, "does not have: model.layers.1.mlp.up_proj.weight\n"),
        ({}, {"layers.7.mlp.up_proj.weight": [6, 4]}, "does not have: layers.7.mlp.up_proj.weight\n"),
    ],
)
def test_files_of_another_model_are_refused(config, tensors, reason, folder):
    path = folder(CONFIG | config, TENSORS | tensors)
    with pytest.raises(EnvironmentProblem) as caught:
        check_model_folder(path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"the model {path}: ")


def test_numbers_without_their_scales_are_refused(folder):
    with pytest.raises(EnvironmentProblem, match=r"not how they are scaled: model.embed_tokens.weight is U8 \[8, 4\]"):
        check_model_folder(folder(CONFIG, TENSORS, "U8"))


@pytest.mark.parametrize(
    ("config", "tensors", "dtype"),
    [
        ({}, TENSORS, "BF16"),
        ({}, without("lm_head.weight"), "BF16"),  # tied to the embedding
        ({}, {name.removeprefix("model."): shape for name, shape in TENSORS.items()}, "BF16"),
        ({"vocab_size": 16, "quantization_config": {"quant_method": "x"}}, TENSORS, "U8"),  # two numbers in a byte
        ({"model_type": "opt", "vocab_size": 9}, TENSORS, "BF16"),  # has embeddings of another width
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}, "num_hidden_layers": 1}, TENSORS, "BF16"),
        ({"model_type": "glm4_moe", "num_hidden_layers": 1, "num_nextn_predict_layers": 1}, TENSORS, "BF16"),
        ({"vocab_size": None}, TENSORS, "BF16"),
    ],
)
def test_what_only_loading_can_tell_is_left_to_it(config, tensors, dtype, folder):
    check_model_folder(folder(CONFIG | config, tensors, dtype))
