"""Hugging Face folders from sharded models: gathered one parameter at a time, written in files of limited size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rl_backend_fsdp2.adapters import BASE, is_adapter, merge, outside_name, peft_config, saved_name
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.placement import gather
from rl_backend_fsdp2.sharding import stored_tensors
from rl_backend_fsdp2.step import LoadedModel

MAX_FILE_BYTES = 4 * 2**30
ADAPTER_FOLDER = "adapter"


def full_weights(loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters in float32 under their Hugging Face names, adapters merged; every rank iterates to the end."""
    for name, tensor in stored_tensors(loaded.model):
        if is_adapter(name):
            continue
        whole = gather(tensor)
        if whole.is_floating_point():
            whole = whole.float()
        if loaded.adapter is not None and not loaded.base_only and f"{BASE}.weight" in name:
            whole = merge(loaded.model.model, name, whole, loaded.adapter)
        yield outside_name(name), whole


def export(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """Rank 0 writes config, safetensors, and where there is one the adapter by itself; every rank takes part."""
    model = loaded.model.model
    if mesh.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = torch.float32
        model.config.save_pretrained(directory)
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
        write_safetensors(directory, full_weights(loaded))
    else:
        for _ in full_weights(loaded):  # gathering needs every rank
            continue
    if loaded.adapter is not None and not loaded.base_only:
        _export_adapter(loaded, directory / ADAPTER_FOLDER, mesh)
    mesh.barrier()


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


def _export_adapter(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """What ``PeftModel.from_pretrained`` reads on top of the model the training started from."""
    assert loaded.adapter is not None
    state = {
        saved_name(name): gather(tensor).to("cpu").contiguous()
        for name, tensor in stored_tensors(loaded.model)
        if is_adapter(name) and ".ranknum." not in name
    }
    if mesh.rank == 0:
        directory.mkdir(exist_ok=True)
        save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        peft_config(loaded.adapter, loaded.model.model).save_pretrained(str(directory))
