"""Hugging Face folders from sharded models: gathered one parameter at a time, written in files of limited size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from rl_torch.hf_folder import write_config, write_safetensors
from rl_torch.published import published
from safetensors.torch import save_file
from torch import Tensor

from rl_backend_fsdp2.adapters import BASE, HEAD, is_adapter, merge, outside_name, saved_config, saved_name
from rl_backend_fsdp2.dtensors import gather
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.sharding import stored_tensors
from rl_backend_fsdp2.step import LoadedModel

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
    """Rank 0 writes config, safetensors, and where there is one the adapter by itself; every rank takes part.

    The weights have the names that ``save_pretrained`` would give them.
    """
    model = loaded.model.model
    if mesh.rank == 0:
        directory.mkdir(exist_ok=True)
        write_config(directory, model, dtype=torch.float32)
        shapes = {outside_name(n): t.shape for n, t in stored_tensors(loaded.model) if not is_adapter(n)}
        write_safetensors(directory, published(model, full_weights(loaded), shapes))
    else:
        for _ in full_weights(loaded):  # gathering needs every rank
            continue
    if loaded.adapter is not None and not loaded.base_only:
        _export_adapter(loaded, directory / ADAPTER_FOLDER, mesh)
    mesh.barrier()


def _export_adapter(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """What ``PeftModel.from_pretrained`` reads on top of the model the training started from."""
    assert loaded.adapter is not None
    state = {
        saved_name(name): gather(tensor).to("cpu").contiguous()
        for name, tensor in stored_tensors(loaded.model)
        if (is_adapter(name) and ".ranknum." not in name) or name.startswith(f"{HEAD}.")
    }
    if mesh.rank == 0:
        directory.mkdir(exist_ok=True)
        save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        saved_config(loaded.adapter, loaded.model.model).save_pretrained(str(directory))
