"""Folders that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rl_torch.hf_folder import write_safetensors
from safetensors.torch import load_file


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
