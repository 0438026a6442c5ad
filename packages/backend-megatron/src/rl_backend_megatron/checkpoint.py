"""Saving, restoring and exporting a role.

A checkpoint directory holds ``shards/`` (:mod:`rl_torch.shards`: parameters and AdamW moments, readable in any
layout), ``role.json`` (optimizer steps taken) and ``rng-<rank>.safetensors`` (random-number state). With an adapter
only the adapter is stored: the weights under it are those of the model. Megatron says where its parts lie in the
whole tensors; the files are not those of its dist_checkpointing, which holds pickles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensorFactory,
    apply_factories,
    is_main_replica,
)
from rl_torch.role_files import (
    read_facts,
    read_random_state,
    require_own_directory,
    write_facts,
    write_random_state,
    write_together,
)
from rl_torch.shards import BackgroundWrite, Shard, read_shards, write_shards

from rl_backend_megatron.optimizer_state import load_optimizer, sharded_optimizer
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.step import LoadedModel

logger = logging.getLogger(__name__)

FORMAT = 2


def save(loaded: LoadedModel, directory: Path, runtime: Runtime, *, background: bool = False) -> None:
    """Write parameters, optimizer and random-number state; every rank takes part.

    Args:
        background: return when everything is copied to host memory; :func:`finish` waits for the writing.

    Raises:
        RLError: the directory already holds another role.
        StorageError: on all ranks, where one of them could not write.
    """
    require_own_directory(directory, loaded.role.name)
    runtime.barrier()  # role.json must not appear before every rank has looked
    shards = [_shard(tensor) for tensor in _tensors(_built(_sharded_state(loaded, runtime)))]
    write_together(lambda: _write(loaded, directory, runtime, shards, background=background))


def _write(loaded: LoadedModel, directory: Path, runtime: Runtime, shards: list[Shard], *, background: bool) -> None:
    finish(loaded)
    folder = directory / "shards"
    folder.mkdir(exist_ok=True)
    if background:
        loaded.saving = BackgroundWrite(shards, folder, rank=runtime.rank)
    else:
        write_shards(shards, folder, rank=runtime.rank)
    write_random_state(directory, runtime.rank)
    if runtime.rank == 0:
        steps = loaded.trainer.steps if loaded.trainer is not None else 0
        write_facts(directory, {"format": FORMAT, "role": loaded.role.name, "steps": steps, "ranks": runtime.size})


def is_saving(loaded: LoadedModel) -> bool:
    """Whether this rank still writes in the background."""
    return loaded.saving is not None and loaded.saving.is_running


def finish(loaded: LoadedModel) -> None:
    """Wait for a background write. Raises what it raised."""
    saving, loaded.saving = loaded.saving, None
    if saving is not None:
        saving.finish()


def restore(loaded: LoadedModel, directory: Path, runtime: Runtime) -> None:
    """Read what :func:`save` wrote, resharding where the layout changed.

    Hyper-parameters (learning rate, weight decay) come from the current config, not from the
    checkpoint. A rank that the checkpoint had no counterpart for keeps its own random numbers.

    Raises:
        RLError: there is no checkpoint of this role, it is damaged, or this version cannot read it.
    """
    facts = read_facts(directory, backend="megatron", version=FORMAT, role=loaded.role.name)
    finish(loaded)
    trainer = loaded.trainer
    if trainer is not None:
        trainer.steps = facts["steps"]
    wanted = _sharded_state(loaded, runtime)
    if wanted:
        state = _read(wanted, directory / "shards")
        loaded.stage.load_state_dict(state["model"], strict=False)
        if trainer is not None:
            load_optimizer(trainer, state["optimizer"])
    if not read_random_state(directory, runtime.rank):
        logger.warning("%s has no random-number state for rank %d", directory, runtime.rank)
    runtime.barrier()


def _read(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tensors in the structure of ``wanted``, factories merged; those of ``wanted`` are overwritten."""
    built = _built(wanted)
    read_shards([_shard(tensor) for tensor in _tensors(built)], folder)
    return _merged(wanted, built)


def _built(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` with factories replaced by the tensors they make, which share memory with the originals."""
    result = _outer(state)
    apply_factories(result)
    return result


def _outer(state: dict[str, Any]) -> dict[str, Any]:
    return {name: _outer(value) if isinstance(value, dict) else value for name, value in state.items()}


def _tensors(state: Any) -> Iterator[ShardedTensor]:
    if isinstance(state, ShardedTensor):
        yield state
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _merged(wanted: Any, built: Any) -> Any:
    """The data of ``built``, with what each factory of ``wanted`` split put together again."""
    if isinstance(wanted, dict):
        return {name: _merged(value, built[name]) for name, value in wanted.items()}
    if isinstance(wanted, ShardedTensorFactory):
        return wanted.merge_fn(_data(built))
    return built.data


def _data(built: Any) -> Any:
    if isinstance(built, dict):
        return {name: _data(value) for name, value in built.items()}
    return [_data(value) for value in built] if isinstance(built, list) else built.data


def _shard(tensor: ShardedTensor) -> Shard:
    return Shard(
        name=tensor.key,
        data=tensor.data,
        shape=tuple(tensor.global_shape),
        offset=tuple(tensor.global_offset),
        owned=is_main_replica(tensor.replica_id),
        flexible=tensor.allow_shape_mismatch,
    )


def _sharded_state(loaded: LoadedModel, runtime: Runtime) -> dict[str, Any]:
    """What is saved, or what is to be read; empty for a role that shares another's model."""
    if loaded.base_of is not None:
        return {}
    metadata = {"dp_cp_group": runtime.groups.dp_cp, "singleton_local_shards": False}
    model = loaded.stage.sharded_state_dict(metadata=metadata)
    # Transformer Engine's layers add objects of their own, which matter for fp8 only and would have to be pickled.
    model = {name: part for name, part in model.items() if isinstance(part, ShardedTensor | ShardedTensorFactory)}
    if loaded.adapters is not None:
        trained = {name for name, p in loaded.stage.named_parameters() if p.requires_grad}
        model = {name: tensor for name, tensor in model.items() if name in trained}
    state: dict[str, Any] = {"model": model}
    if loaded.trainer is not None:
        state["optimizer"] = sharded_optimizer(loaded.trainer, model, runtime)
    return state
