"""Saving, restoring and exporting a role.

A checkpoint directory holds ``shards/`` (Megatron's dist_checkpointing: parameters and AdamW moments, readable
in any layout), ``role.json`` (optimizer steps taken) and ``rng-<rank>.safetensors`` (random-number state). With
an adapter only the adapter is stored: the weights under it are those of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from rl_torch.role_files import (
    read_facts,
    refuse_other_role,
    restore_random_state,
    save_random_state,
    write_facts,
)

from rl_backend_megatron.optimizer_state import load_optimizer, sharded_optimizer
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.saving import BackgroundSave, write
from rl_backend_megatron.step import LoadedModel

FORMAT = 1


def save(loaded: LoadedModel, directory: Path, runtime: Runtime, *, background: bool = False) -> None:
    """Write parameters, optimizer and random-number state; every rank takes part.

    Args:
        background: return when everything is copied to host memory; :func:`finish` waits for the writing.

    Raises:
        RLError: the directory already holds another role.
    """
    refuse_other_role(directory, loaded.role)
    finish(loaded, runtime)
    shards = directory / "shards"
    if runtime.rank == 0:
        shards.mkdir(exist_ok=True)
    runtime.barrier()
    state = _sharded_state(loaded, runtime)
    if state and background:
        loaded.saving = BackgroundSave(state, shards)
    elif state:
        write(state, shards)
    save_random_state(directory, runtime.rank)
    if runtime.rank == 0:
        steps = loaded.trainer.steps if loaded.trainer is not None else 0
        write_facts(directory, loaded.role, version=FORMAT, steps=steps, ranks=runtime.size)
    runtime.barrier()


def is_saving(loaded: LoadedModel) -> bool:
    """Whether this rank still writes in the background."""
    return loaded.saving is not None and loaded.saving.is_running


def finish(loaded: LoadedModel, runtime: Runtime) -> None:
    """Wait for a background write and make it whole; every rank takes part. Raises what it raised."""
    saving, loaded.saving = loaded.saving, None
    if saving is not None:
        saving.finish(runtime)


def restore(loaded: LoadedModel, directory: Path, runtime: Runtime) -> None:
    """Read what :func:`save` wrote, resharding where the layout changed.

    Hyper-parameters (learning rate, weight decay) come from the current config, not from the
    checkpoint. A rank that the checkpoint had no counterpart for keeps its own random numbers.

    Raises:
        RLError: there is no checkpoint of this role, or this version cannot read it.
    """
    facts = read_facts(directory, loaded.role, backend="megatron", version=FORMAT)
    finish(loaded, runtime)
    trainer = loaded.trainer
    if trainer is not None:
        trainer.steps = facts["steps"]
    wanted = _sharded_state(loaded, runtime)
    if wanted:
        state = dist_checkpointing.load(wanted, str(directory / "shards"))
        loaded.stage.load_state_dict(state["model"], strict=False)
        if trainer is not None:
            load_optimizer(trainer, state["optimizer"])
    restore_random_state(directory, runtime.rank)
    runtime.barrier()


def _sharded_state(loaded: LoadedModel, runtime: Runtime) -> dict[str, Any]:
    """What is saved, or what is to be read; empty for a role that shares another's model."""
    if loaded.base_of is not None:
        return {}
    metadata = {"dp_cp_group": runtime.groups.dp_cp, "singleton_local_shards": False}
    model = loaded.stage.sharded_state_dict(metadata=metadata)
    if loaded.adapters is not None:
        trained = {name for name, p in loaded.stage.named_parameters() if p.requires_grad}
        model = {name: tensor for name, tensor in model.items() if name in trained}
    state: dict[str, Any] = {"model": model}
    if loaded.trainer is not None:
        state["optimizer"] = sharded_optimizer(loaded.trainer, model, runtime)
    return state
