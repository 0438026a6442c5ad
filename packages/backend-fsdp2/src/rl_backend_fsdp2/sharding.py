"""FSDP2 around a model: one shard group per decoder layer, gradients summed over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from rl_torch.policy import PolicyModel, ScalarModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rl_backend_fsdp2.mesh import Mesh

Wrapped = PolicyModel | ScalarModel


def shard_model(model: Wrapped, mesh: Mesh, *, precision: Literal["fp32", "bf16"]) -> Wrapped:
    """Shard ``model`` in place over ``mesh`` and return it; moves it to the mesh's device.

    A single rank that computes in float32 has nothing to shard or cast and stays a plain module:
    FSDP's hooks and DTensor updates cost 13 ms of 50 ms per step of a 0.4M-parameter model on CPU.
    """
    model.to(mesh.device)
    if mesh.size == 1 and precision == "fp32":
        return model
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in decoder_layers(model.model):
        fully_shard(layer, mesh=mesh.dp, mp_policy=policy)
    fully_shard(model, mesh=mesh.dp, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by global counts already, so gradients add up over ranks; gloo has
            # no averaging or pre-multiplied reduction anyway.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest list of modules that is not inside another one."""
    lists: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            lists.append(module)
            inside.update(module.modules())
    return list(max(lists, key=len, default=nn.ModuleList()))


def release(model: Wrapped) -> None:
    """Drop the gathered parameters that a forward pass without a backward pass leaves at the root.

    They would otherwise be used, stale, after the next optimizer step or restore.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def hf_state(model: Wrapped) -> Iterator[tuple[str, Tensor]]:
    """Stored parameters and persistent buffers under their Hugging Face names, tied ones once."""
    seen: set[int] = set()
    for name, tensor in model.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def gather(tensor: Tensor) -> Tensor:
    """The full tensor; a collective for sharded ones."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
