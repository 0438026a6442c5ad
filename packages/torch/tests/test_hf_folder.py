"""Folders that transformers reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.hf_folder import check_writable, write_config, write_safetensors
from rl_torch.models import build_config, build_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

SMALL = {"architecture": "llama", "hidden_size": 16, "layers": 1, "heads": 2}


def test_an_export_is_written_in_several_files_where_it_is_large(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((100,), float(i)) for i in range(5)}
    write_safetensors(tmp_path, tensors.items(), max_bytes=900)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert index["weight_map"].keys() == tensors.keys()


def test_a_generation_config_is_copied_even_if_transformers_would_not_write_it(tmp_path: Path) -> None:
    spec = ModelSpec(init=SMALL, vocab_size=20, max_length=32)
    made = build_model(spec, dtype=torch.float32)
    made.save_pretrained(tmp_path / "model")
    given = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 7], "unknown_to_transformers": 1}  # like Vicuna's
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(given))
    loaded = build_model(ModelSpec(path=str(tmp_path / "model")), dtype=torch.float32)
    check_writable(loaded, dtype=torch.float32)
    (tmp_path / "export").mkdir()
    write_config(tmp_path / "export", loaded, dtype=torch.float32)
    assert json.loads((tmp_path / "export" / "generation_config.json").read_text()) == given
    # Read from its config only, as where ranks read the weights.
    config = build_config(ModelSpec(path=str(tmp_path / "model")))
    write_config(tmp_path / "export", type(loaded)(config), dtype=torch.float32)
    assert json.loads((tmp_path / "export" / "generation_config.json").read_text()) == given


LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}


def test_a_model_that_transformers_would_load_with_another_weight_is_refused_before_training(tmp_path: Path) -> None:
    extra = {**LATENT, "initializer_range": 0.2}
    spec = ModelSpec(init=SMALL | {"architecture": "youtu", "extra": extra}, vocab_size=20, max_length=32)
    check_writable(build_model(spec, dtype=torch.float32), dtype=torch.float32)
    padded = build_model(dataclasses.replace(spec, special_tokens={"pad_token_id": 3}), dtype=torch.float32)
    with torch.no_grad():
        padded.lm_head.weight[3] = 1.0  # what a training step would change
    padded.save_pretrained(tmp_path)
    assert not AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight[3].any(), "no refusal would be needed"
    with pytest.raises(EnvironmentProblem, match=r"embedding of token 3 \(pad_token_id\) to zero .*\n    remove pad"):
        check_writable(padded, dtype=torch.float32)


def test_a_text_model_that_no_class_of_transformers_reads_is_refused_before_training() -> None:
    config = MllamaTextConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        pad_token_id=0,
    )
    with pytest.raises(EnvironmentProblem, match=r"cannot load an exported MllamaForCausalLM .*\(mllama_text_model\)"):
        check_writable(MllamaForCausalLM(config), dtype=torch.float32)


def test_a_config_that_cannot_be_written_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(init=SMALL, vocab_size=20, max_length=32)
    made = build_model(spec, dtype=torch.float32)

    def refuse(_folder: object) -> None:
        raise ValueError("odd field")

    monkeypatch.setattr(made.config, "save_pretrained", refuse)
    with pytest.raises(EnvironmentProblem, match="cannot be written: ValueError: odd field"):
        check_writable(made, dtype=torch.float32)
