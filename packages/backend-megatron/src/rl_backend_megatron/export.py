"""Writing a role as a Hugging Face folder, in files of bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.step import LoadedModel
from rl_backend_megatron.weights import skeleton

FILE_BYTES = 4 * 2**30
"""A new safetensors file is begun rather than exceed this; rank 0 holds one file's tensors at a time."""


def export(loaded: LoadedModel, directory: Path, runtime: Runtime, *, file_bytes: int = FILE_BYTES) -> None:
    """Rank 0 writes ``config.json`` and safetensors, LoRA merged in; every rank takes part."""
    streamed = loaded.weights.stream(loaded.stage, merged=loaded.base_of is None)
    if runtime.rank == 0:
        dtype = _write_weights(streamed, directory, file_bytes)
        _write_config(loaded, directory, dtype)
    else:
        for _ in streamed:  # gathering needs every rank
            continue
    runtime.barrier()


def _write_weights(streamed: Iterator[tuple[str, Tensor]], directory: Path, file_bytes: int) -> torch.dtype:
    """Tensors in the order they come; one file without an index where they fit."""
    parts: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0
    dtype = torch.float32

    def flush() -> None:
        save_file(held, directory / f"part-{len(parts)}.safetensors", metadata={"format": "pt"})
        parts.append(list(held))
        held.clear()

    for name, tensor in streamed:
        nbytes, dtype = tensor.numel() * tensor.element_size(), tensor.dtype
        if held and size + nbytes > file_bytes:
            flush()
            size = 0
        # Cloned: a stage's own parameter would otherwise be written while it shares memory with others.
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += nbytes
        total += nbytes
    flush()
    _name_files(parts, directory, total)
    return dtype


def _name_files(parts: list[list[str]], directory: Path, total: int) -> None:
    """The names transformers looks for, which tell how many files there are."""
    if len(parts) == 1:
        (directory / "part-0.safetensors").rename(directory / "model.safetensors")
        return
    where = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (directory / f"part-{number}.safetensors").rename(directory / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_config(loaded: LoadedModel, directory: Path, dtype: torch.dtype) -> None:
    model = skeleton(loaded.weights.architecture.config, loaded.stage.head)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(directory)
    if model.can_generate():
        GenerationConfig.from_model_config(model.config).save_pretrained(directory)
