"""Saving, restoring and exporting a role.

A checkpoint directory holds ``shards/`` (torch.distributed.checkpoint: parameters and AdamW
moments under their Hugging Face names, readable on any number of ranks), ``role.json`` (optimizer
steps taken) and ``rng-<rank>.safetensors`` (random-number state).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from rl_core.errors import RLError
from rl_torch.seeding import rng_state, set_rng_state
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.sharding import gather, hf_state, release
from rl_backend_fsdp2.step import LoadedModel

logger = logging.getLogger(__name__)

FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """Write parameters, optimizer and random-number state; every rank takes part.

    Raises:
        RLError: the directory already holds another role.
    """
    facts = directory / "role.json"
    if facts.exists() and json.loads(facts.read_text())["role"] != loaded.role.name:
        raise RLError(f"{directory} already holds another role's checkpoint; save {loaded.role.name!r} elsewhere")
    mesh.barrier()
    dcp.save(_sharded_state(loaded), checkpoint_id=directory / "shards")
    save_file(rng_state(), directory / f"rng-{mesh.rank}.safetensors")
    if mesh.rank == 0:
        content = {"format": FORMAT, "role": loaded.role.name, "steps": loaded.steps, "ranks": mesh.size}
        facts.write_text(json.dumps(content, indent=1) + "\n")
    mesh.barrier()


def restore(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """Read what :func:`save` wrote, resharding where the number of ranks changed.

    Hyper-parameters (learning rate, weight decay) come from the current config, not from the
    checkpoint. A rank that the checkpoint had no counterpart for keeps its own random numbers.

    Raises:
        RLError: there is no checkpoint of this role, or this version cannot read it.
    """
    facts = _read_facts(loaded, directory)
    release(loaded.model)
    loaded.steps = facts["steps"]
    state = _sharded_state(loaded)
    dcp.load(state, checkpoint_id=directory / "shards")
    rng = directory / f"rng-{mesh.rank}.safetensors"
    if rng.exists():
        set_rng_state(load_file(rng))
    else:
        logger.warning("%s has no random-number state for rank %d", directory, mesh.rank)
    mesh.barrier()


def export(loaded: LoadedModel, directory: Path, mesh: Mesh) -> None:
    """Rank 0 writes ``config.json`` and safetensors in float32; every rank takes part."""
    state = {}
    for name, tensor in hf_state(loaded.model):
        full = gather(tensor)
        if mesh.rank == 0:
            state[name] = full.cpu()
    if mesh.rank == 0:
        loaded.model.model.save_pretrained(directory, state_dict=state)
    mesh.barrier()


def _read_facts(loaded: LoadedModel, directory: Path) -> dict[str, int]:
    path = directory / "role.json"
    if not path.exists():
        raise RLError(f"{directory} holds no fsdp2 checkpoint (no role.json)")
    facts = json.loads(path.read_text())
    if facts["format"] != FORMAT:
        raise RLError(f"{path}: checkpoint format {facts['format']}, this version of rl-backend-fsdp2 reads {FORMAT}")
    if facts["role"] != loaded.role.name:
        raise RLError(f"{directory} holds the role {facts['role']!r}, not {loaded.role.name!r}")
    return facts


def _sharded_state(loaded: LoadedModel) -> dict[str, Tensor]:
    """The tensors to save, or to load into in place: nothing here is a copy."""
    state = {f"model.{name}": tensor for name, tensor in hf_state(loaded.model)}
    if loaded.optimizer is None:
        return state
    for name, parameter in loaded.model.model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments = _moments(loaded.optimizer, parameter, loaded.steps)
        state |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS}
    return state


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor, steps: int) -> dict[str, Tensor]:
    """AdamW's state of a parameter, as its first step would create it, at ``steps`` steps."""
    state = optimizer.state[parameter]
    for moment in _MOMENTS:
        if moment not in state:
            state[moment] = torch.zeros_like(parameter.detach())
    state["step"] = torch.tensor(float(steps), device=parameter.device)
    return state
