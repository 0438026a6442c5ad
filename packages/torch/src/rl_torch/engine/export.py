"""Hugging Face folders from models on many ranks: gathered one parameter at a time, in files of limited size."""

from __future__ import annotations

from pathlib import Path

from rl_torch.engine.strategy import RoleModel
from rl_torch.engine.world import World
from rl_torch.hf_folder import write_config, write_safetensors
from rl_torch.published import published
from rl_torch.transports.buckets import exhaust

ADAPTER_FOLDER = "adapter"


def export(model: RoleModel, directory: Path, world: World) -> None:
    """Rank 0 writes config and safetensors, and where there is one the adapter by itself; every rank takes part.

    The weights have the names that ``save_pretrained`` would give them.
    """
    weights = model.named_weights()
    if world.rank == 0:
        directory.mkdir(exist_ok=True)
        write_config(directory, model.hf, dtype=model.dtype)
        write_safetensors(directory, published(model.hf, weights, model.shapes()))
    else:
        exhaust(weights)  # gathering needs every rank
    model.export_adapter(directory / ADAPTER_FOLDER)
    world.barrier()
