"""Folders that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.hf_folder import check_writable, write_config, write_safetensors
from rl_torch.models import build_config, build_model
from safetensors.torch import load_file

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


def test_a_config_that_cannot_be_written_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(init=SMALL, vocab_size=20, max_length=32)
    made = build_model(spec, dtype=torch.float32)

    def refuse(_folder: object) -> None:
        raise ValueError("odd field")

    monkeypatch.setattr(made.config, "save_pretrained", refuse)
    with pytest.raises(EnvironmentProblem, match="cannot be written: ValueError: odd field"):
        check_writable(made, dtype=torch.float32)
