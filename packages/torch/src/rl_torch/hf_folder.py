"""Writing Hugging Face folders: safetensors of limited size, and the config beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

MAX_FILE_BYTES = 4 * 2**30
"""A new file is begun rather than exceed this; one file's tensors are in host memory at a time."""


def write_config(directory: Path, model: PreTrainedModel, *, dtype: torch.dtype) -> None:
    """Write ``config.json``, and where it generates ``generation_config.json``; weights of ``model`` are not read."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def write_safetensors(directory: Path, named: Iterable[tuple[str, Tensor]], *, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write ``model.safetensors``, or several files and their index where it would be larger than ``max_bytes``."""
    files: list[tuple[Path, list[str]]] = []
    part: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = directory / f".part-{len(files):05d}.safetensors"
        save_file(part, path, metadata={"format": "pt"})
        files.append((path, list(part)))
        part.clear()

    for name, tensor in named:
        nbytes = tensor.numel() * tensor.element_size()
        if part and size + nbytes > max_bytes:
            flush()
            size = 0
        part[name] = tensor.detach().to("cpu").contiguous().clone()
        size, total = size + nbytes, total + nbytes
    flush()
    if len(files) == 1:
        files[0][0].rename(directory / "model.safetensors")
        return
    weight_map = {}
    for index, (path, names) in enumerate(files, start=1):
        final = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        path.rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
