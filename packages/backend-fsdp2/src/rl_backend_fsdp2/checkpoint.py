"""Saving and restoring a role.

A checkpoint directory holds ``shards/`` (:mod:`rl_torch.shards`: parameters and AdamW moments, readable on any number
of ranks in any layout), ``role.json`` (optimizer steps taken, loss scale), ``rng-<rank>.safetensors``
(random-number state) and for AdaLoRA ``ranks.safetensors``. With an adapter, ``shards/`` holds only what is trained.
All of it is JSON and safetensors: reading runs no code.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from rl_core.errors import RLError
from rl_torch.role_files import (
    read_facts,
    read_random_state,
    require_own_directory,
    write_facts,
    write_random_state,
    write_together,
)
from rl_torch.shards import BackgroundWrite, Shard, load_tensors, read_shards, save_tensors, write_shards
from torch import Tensor

from rl_backend_fsdp2.adapters import is_adapter, outside_name
from rl_backend_fsdp2.dtensors import is_written_here, local, own_slice
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.sharding import release, stored_tensors
from rl_backend_fsdp2.step import LoadedModel

logger = logging.getLogger(__name__)

FORMAT = 2
_MOMENTS = ("exp_avg", "exp_avg_sq")
_RANKS = "ranks.safetensors"


def save(loaded: LoadedModel, directory: Path, mesh: Mesh, *, background: bool = False) -> None:
    """Write parameters, optimizer and random-number state; every rank takes part.

    Args:
        background: return when everything is copied to host memory; :func:`finish` waits for the writing.

    Raises:
        RLError: the directory already holds another role.
        StorageError: on all ranks, where one of them could not write.
    """
    require_own_directory(directory, loaded.role.name)
    mesh.barrier()  # role.json must not appear before every rank has looked
    write_together(lambda: _write(loaded, directory, mesh, background=background), mesh.saving_group)


def _write(loaded: LoadedModel, directory: Path, mesh: Mesh, *, background: bool) -> None:
    finish(loaded)
    folder = directory / "shards"
    folder.mkdir(exist_ok=True)
    shards = _shards(loaded, mesh)
    if background:
        loaded.saving.append(BackgroundWrite(shards, folder, rank=mesh.rank))
    else:
        write_shards(shards, folder, rank=mesh.rank)
    write_random_state(directory, mesh.rank)
    if mesh.rank != 0:
        return
    content: dict[str, Any] = {
        "format": FORMAT,
        "role": loaded.role.name,
        "steps": loaded.steps,
        "ranks": mesh.size,
        "adapter": loaded.adapter.kind if loaded.adapter else None,
    }
    if loaded.loss_scale is not None:
        content["loss_scale"] = [loaded.loss_scale.value, loaded.loss_scale.good_steps]
    if loaded.ranks is not None:
        save_tensors(loaded.ranks.state(), directory / _RANKS)
    write_facts(directory, content)


def is_saving(loaded: LoadedModel) -> bool:
    """Whether this rank still writes in the background."""
    return any(write.is_running for write in loaded.saving)


def finish(loaded: LoadedModel) -> None:
    """Wait for background writes; raises what they raised."""
    while loaded.saving:
        loaded.saving.pop().finish()


def restore(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """Read what :func:`save` wrote, resharding where the number of ranks or the layout changed.

    Hyper-parameters (learning rate, weight decay) come from the current config, not from the
    checkpoint. A rank that the checkpoint had no counterpart for keeps its own random numbers.

    Raises:
        RLError: there is no checkpoint of this role, it is damaged, or this version cannot read it.
    """
    facts = _read_facts(loaded, directory)
    release(loaded.model)
    loaded.steps = facts["steps"]
    read_shards(_shards(loaded, mesh), directory / "shards")
    if loaded.loss_scale is not None and "loss_scale" in facts:
        loaded.loss_scale.value, loaded.loss_scale.good_steps = facts["loss_scale"]
    if loaded.ranks is not None:
        loaded.ranks.load_state({n: t.to(mesh.device) for n, t in load_tensors(directory / _RANKS).items()})
    if not read_random_state(directory, mesh.rank):
        logger.warning("%s has no random-number state for rank %d", directory, mesh.rank)
    mesh.barrier()


def _read_facts(loaded: LoadedModel, directory: Path) -> dict[str, Any]:
    facts = read_facts(directory, backend="fsdp2", version=FORMAT, role=loaded.role.name)
    ours = loaded.adapter.kind if loaded.adapter else None
    if facts.get("adapter") != ours:
        theirs = facts.get("adapter")
        raise RLError(
            f"{directory} was saved with {f'a {theirs} adapter' if theirs else 'no adapter'}, "
            f"this run has {f'a {ours} adapter' if ours else 'none'}\n    resume with the model.adapter of that run"
        )
    return facts


def _shards(loaded: LoadedModel, mesh: Mesh) -> list[Shard]:
    """This rank's parts of everything that is saved; nothing here is a copy."""
    return [
        Shard(
            name=name,
            data=local(tensor),
            shape=tuple(tensor.shape),
            offset=tuple(part.start for part in own_slice(tensor)),
            owned=is_written_here(tensor, mesh.coordinates),
        )
        for name, tensor in _sharded_state(loaded).items()
    ]


def _sharded_state(loaded: LoadedModel) -> dict[str, Tensor]:
    """The tensors to save, or to load into in place: nothing here is a copy."""
    trained = {n for n, p in loaded.model.model.named_parameters() if p.requires_grad}
    state = {
        f"model.{outside_name(name)}": tensor
        for name, tensor in stored_tensors(loaded.model)
        if loaded.adapter is None or name in trained or is_adapter(name)
    }
    if loaded.optimizer is None:
        return state
    for name, parameter in loaded.model.model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments = _moments(loaded.optimizer, parameter, loaded.steps)
        state |= {f"{moment}.{outside_name(name)}": moments[moment] for moment in _MOMENTS}
    return state


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor, steps: int) -> dict[str, Tensor]:
    """AdamW's state of a parameter, as its first step would create it, at ``steps`` steps."""
    state = optimizer.state[parameter]
    for moment in _MOMENTS:
        if moment not in state:
            state[moment] = torch.zeros_like(parameter.detach())
    state["step"] = torch.tensor(float(steps), device=parameter.device)
    return state
