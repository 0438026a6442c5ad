"""Saving and restoring a role.

A checkpoint directory holds ``shards/`` (:mod:`rl_torch.shards`: what is trained and AdamW moments, readable on any
number of ranks in any layout), ``role.json`` (optimizer steps taken, kind of adapter, loss scale),
``rng-<rank>.safetensors`` (random-number state) and, where a model has other state, ``ranks.safetensors``. With an
adapter only what is trained is stored: the weights under it are those of the model. All of it is JSON and safetensors:
reading runs no code.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_core.errors import RLError

from rl_torch.engine.roles import LoadedRole
from rl_torch.engine.world import World
from rl_torch.role_files import (
    read_facts,
    read_random_state,
    require_own_directory,
    write_facts,
    write_random_state,
    write_together,
)
from rl_torch.shards import BackgroundWrite, Shard, load_tensors, read_shards, save_tensors, write_shards

logger = logging.getLogger(__name__)

FORMAT = 2

EXTRA = "ranks.safetensors"
"""Of :attr:`rl_torch.engine.strategy.RoleModel.extra`, which is AdaLoRA's ranks."""


def save(loaded: LoadedRole, directory: Path, world: World, *, background: bool) -> None:
    """Write parameters, optimizer and random-number state; every rank takes part.

    Args:
        background: return when everything is copied to host memory.

    Raises:
        RLError: the directory already holds another role.
        StorageError: on all ranks, where one of them could not write.
    """
    require_own_directory(directory, loaded.role.name)
    world.barrier()  # role.json must not appear before every rank has looked
    shards = loaded.model.state(loaded.steps)
    write_together(lambda: _write(loaded, directory, world, shards, background=background), world.host_group)


def _write(loaded: LoadedRole, directory: Path, world: World, shards: Sequence[Shard], *, background: bool) -> None:
    loaded.finish_saving()
    folder = directory / "shards"
    folder.mkdir(exist_ok=True)
    if background:
        loaded.saving.append(BackgroundWrite(shards, folder, rank=world.rank))
    else:
        write_shards(shards, folder, rank=world.rank)
    write_random_state(directory, world.rank)
    if world.rank != 0:
        return
    facts: dict[str, Any] = {
        "format": FORMAT,
        "role": loaded.role.name,
        "steps": loaded.steps,
        "ranks": world.size,
        "adapter": loaded.adapter.kind if loaded.adapter else None,
    }
    if loaded.loss_scale is not None:
        facts["loss_scale"] = [loaded.loss_scale.value, loaded.loss_scale.good_steps]
    if loaded.model.extra is not None:
        save_tensors(loaded.model.extra.state(), directory / EXTRA)
    write_facts(directory, facts)


def restore(loaded: LoadedRole, directory: Path, world: World, *, backend: str) -> None:
    """Read what :func:`save` wrote, resharding where the number of ranks or the layout changed.

    Hyper-parameters (learning rate, weight decay) come from the current config, not from the checkpoint. A rank that
    the checkpoint had no counterpart for keeps its own random numbers.

    Args:
        backend: its name.

    Raises:
        RLError: there is no checkpoint of this role, it is damaged, or this version cannot read it.
    """
    facts = _read_facts(loaded, directory, backend)
    loaded.finish_saving()
    loaded.steps = facts["steps"]
    loaded.model.load_state(lambda shards: read_shards(shards, directory / "shards"), steps=loaded.steps)
    if loaded.loss_scale is not None and "loss_scale" in facts:
        loaded.loss_scale.value, loaded.loss_scale.good_steps = facts["loss_scale"]
    if loaded.model.extra is not None:
        tensors = load_tensors(directory / EXTRA)
        loaded.model.extra.load_state({name: tensor.to(world.device) for name, tensor in tensors.items()})
    if not read_random_state(directory, world.rank):
        logger.warning("%s has no random-number state for rank %d", directory, world.rank)
    world.barrier()


def _read_facts(loaded: LoadedRole, directory: Path, backend: str) -> dict[str, Any]:
    facts = read_facts(directory, backend=backend, version=FORMAT, role=loaded.role.name)
    ours = loaded.adapter.kind if loaded.adapter else None
    theirs = facts.get("adapter", ours)  # rl-backend-megatron 0.1 did not write it
    if theirs != ours:
        raise RLError(
            f"{directory} was saved with {f'a {theirs} adapter' if theirs else 'no adapter'}, "
            f"this run has {f'a {ours} adapter' if ours else 'none'}\n    resume with the model.adapter of that run"
        )
    return facts
