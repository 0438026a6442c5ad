"""The sizes of models that are not loaded."""

from __future__ import annotations

import json

import pytest
from acme_kit import LinesConfig
from rl_core.config.sections import ModelConfig
from rl_huggingface.model_shape import ASSUMED_VOCABULARY, FoundShape, shape_at, shape_of_config, shape_of_model

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "head_dim": 128,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN, 494_032_768),
        (LLAMA, 8_030_261_248),
        (QWEN3, 596_049_920),
        (GPT2, 124_439_808),
        (MIXTRAL, 46_702_792_704),
        ({"model_type": "llava", "vocab_size": 1, "text_config": LLAMA}, 8_030_261_248),
    ],
    ids=["Qwen2.5-0.5B", "Llama-3-8B", "Qwen3-0.6B", "GPT-2", "Mixtral-8x7B", "nested"],
)
def test_published_models_have_their_published_number_of_parameters(config, parameters):
    assert shape_of_config(config).parameters().total == parameters


def test_a_scalar_head_has_one_row():
    count = shape_of_config(LLAMA).parameters("scalar")
    assert (count.head, count.total) == (4096, 8_030_261_248 - 128256 * 4096 + 4096)


def init(**fields) -> ModelConfig:
    return ModelConfig(init={"architecture": "qwen2", "hidden_size": 64, "layers": 2, "heads": 4, **fields})


class Tokenizer:
    def __init__(self, **fields):
        self.__dict__ |= fields


def test_a_model_from_scratch_takes_its_vocabulary_from_the_tokenizer():
    found = shape_of_model(init(kv_heads=2, ffn=96), Tokenizer(vocab_size=128))
    assert (found.unknown, found.note) == ("", "")
    shape = found.shape
    assert (shape.vocab_size, shape.kv_heads, shape.head_dim, shape.ffn, shape.tie_embeddings) == (128, 2, 16, 96, True)


def test_defaults_of_a_model_from_scratch_are_those_it_is_built_with():
    shape = shape_of_model(init(extra={"vocab_size": 7, "head_dim": 32})).shape
    assert (shape.vocab_size, shape.kv_heads, shape.head_dim, shape.ffn) == (7, 4, 32, 256)


def test_a_vocabulary_that_is_not_known_is_assumed_and_said_so():
    found = shape_of_model(init(), Tokenizer(vocab_size=None))
    assert found.shape.vocab_size == ASSUMED_VOCABULARY
    assert found.note == "a vocabulary of 32,768 is assumed: the tokenizer's is not known yet"


def test_a_tokenizers_folder_tells_the_vocabulary(tmp_path):
    words = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 5, "content": "<end>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    assert shape_of_model(init(), Tokenizer(path=str(tmp_path))).shape.vocab_size == 6
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    assert shape_of_model(init(), Tokenizer(path=str(tmp_path))).shape.vocab_size == 151936


def test_another_config_without_a_vocabulary_is_no_tokenizer(tmp_path):
    assert shape_of_model(init(), LinesConfig(name="lines", path=str(tmp_path))).note != ""


def test_a_model_folder_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    found = shape_of_model(ModelConfig(path=str(tmp_path)))
    assert found.shape == shape_of_config(LLAMA)
    assert found.shape.tie_embeddings is False


def test_a_folder_that_cannot_be_used_says_why(tmp_path):
    assert shape_at(str(tmp_path)) == FoundShape(None, unknown=f"{tmp_path} has no config.json")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    file = tmp_path / "config.json"
    assert shape_at(str(tmp_path)).unknown == f"{file} does not describe a decoder: 'hidden_size' is missing"
    file.write_text("{")
    assert shape_at(str(tmp_path)).unknown.startswith(
        f"{file} does not describe a decoder: is not JSON: Expecting property"
    )
    file.write_text("[]")
    assert shape_at(str(tmp_path)).unknown == f"{file} does not describe a decoder: does not hold an object, but a list"


def test_a_hub_id_is_looked_up_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert shape_at("Qwen/Qwen2.5-0.5B").unknown == "Qwen/Qwen2.5-0.5B is not in the local Hugging Face cache"
    folder = tmp_path / "models--Qwen--Qwen2.5-0.5B"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    (folder / "snapshots" / "abc123" / "config.json").write_text(json.dumps(QWEN))
    assert shape_at("Qwen/Qwen2.5-0.5B").shape.parameters().total == 494_032_768
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    assert shape_at("Qwen/Qwen2.5-0.5B").shape is None


def test_an_export_that_is_already_there_is_read_before_it_is_guessed(tmp_path):
    folder = str(tmp_path / "export")
    promised = FoundShape(shape_of_config(QWEN))
    assert shape_at(folder, exports={folder: promised}) == promised
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text(json.dumps(LLAMA))
    assert shape_at(folder, exports={folder: promised}).shape == shape_of_config(LLAMA)


def test_a_shape_that_makes_no_sense_is_unknown():
    found = shape_of_model(init(extra={"num_hidden_layers": "many", "vocab_size": 5}))
    assert found.shape is None
    assert found.unknown == (
        "model.init.extra does not describe a decoder: invalid literal for int() with base 10: 'many'"
    )
