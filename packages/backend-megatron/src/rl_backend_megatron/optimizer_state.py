"""Optimizer state in and out of checkpoints, one tensor per parameter and moment, whatever the optimizer.

Megatron's own way for the distributed optimizer ends in silently wrong updates here: with torch's AdamW it
loses ``step`` or lets all parameters share one tensor of it, and where a tied embedding has a bucket of its
own (pipeline parallel) it reads moments at shifted positions. So parts are put together by parameter instead,
described to dist_checkpointing like the parameter itself, and ``step`` comes from the role's step count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from rl_torch.optim import MOMENTS, moments_of
from torch import Tensor, nn

from rl_backend_megatron.optimizer import Trainer
from rl_backend_megatron.runtime import Runtime


def sharded_optimizer(
    trainer: Trainer, model: Mapping[str, ShardedTensor | ShardedTensorFactory], runtime: Runtime
) -> dict[str, dict[str, Any]]:
    """``{parameter: {what: tensor of the parameter's shape}}`` to save, or to read into; a collective.

    Args:
        model: the model's own sharded state, by parameter name.
    """
    found = {}
    for name, parameter in _trained(trainer):
        like = model.get(name)
        if like is None:  # the output embedding of a single stage that is tied to the input's
            continue
        found[name] = {
            what: _described(like, what, _assembled(trainer, parameter, start, values, runtime))
            for what, start, values in _parts(trainer.optimizer, parameter)
        }
    return found


def load_optimizer(trainer: Trainer, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
    """Copy what was read for :func:`sharded_optimizer` after ``steps`` optimizer steps."""
    with torch.no_grad():
        for name, parameter in _trained(trainer):
            if name not in state:
                continue
            for what, start, values in _parts(trainer.optimizer, parameter):
                if values is not None:
                    full = state[name][what].flatten()
                    values.view(-1).copy_(full[start : start + values.numel()])
    for optimizer in trainer.optimizer.chained_optimizers:
        _set_steps(optimizer.optimizer, steps)


def _set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    if not isinstance(optimizer, torch.optim.AdamW):  # Transformer Engine's or Apex's counts by group
        for group in optimizer.param_groups:
            group["step"] = steps
        return
    for moments in optimizer.state.values():
        # A tensor each: torch adds to it in place.
        moments["step"] = torch.tensor(float(steps))


def _trained(trainer: Trainer) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in trainer.ddp.module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _parts(optimizer: MegatronOptimizer, parameter: nn.Parameter) -> Iterator[tuple[str, int, Tensor | None]]:
    """``(what, first element, this rank's values)``: both moments, and the float32 copy of a bf16 parameter.

    The values are None where other data-parallel ranks hold all of the parameter's state.
    """
    inner = _inner(optimizer, parameter)
    start, main = _main(inner, parameter)
    moments = {} if main is None else _moments(inner, main)
    for what in MOMENTS:
        yield what, start, moments.get(what)
    if parameter.dtype != torch.float32:
        yield "main", start, None if main is None else main.detach()


def _inner(optimizer: MegatronOptimizer, parameter: nn.Parameter) -> MegatronOptimizer:
    """Of the two optimizers, the second one has the experts."""
    return optimizer.chained_optimizers[-1 if _is_expert(parameter) else 0]


def _is_expert(parameter: nn.Parameter) -> bool:
    """Megatron's mark of parameters that are not the same on all data-parallel ranks."""
    return not getattr(parameter, "allreduce", True)


def _main(optimizer: MegatronOptimizer, parameter: nn.Parameter) -> tuple[int, Tensor | None]:
    """What the inner AdamW updates for ``parameter``, and where in the parameter it begins."""
    if not isinstance(optimizer, DistributedOptimizer):
        return 0, getattr(parameter, "main_param", parameter)
    place = optimizer.model_param_group_index_map.get(parameter)
    if place is None:
        return 0, None
    group, index = place
    span = optimizer._get_model_param_range_map(parameter)["param"]
    return span.start, optimizer.optimizer.param_groups[group]["params"][index]


def _moments(optimizer: MegatronOptimizer, main: Tensor) -> Mapping[str, Tensor]:
    """AdamW's state of ``main``, as its first step would create it."""
    state = moments_of(optimizer.optimizer, main)
    if isinstance(optimizer.optimizer, torch.optim.AdamW):
        state.setdefault("step", torch.tensor(0.0))
    return state


def _assembled(
    trainer: Trainer, parameter: nn.Parameter, start: int, values: Tensor | None, runtime: Runtime
) -> Tensor:
    """float32, of the parameter's shape: the data-parallel ranks' parts, concatenated."""
    group = runtime.groups.expt_dp if _is_expert(parameter) else runtime.groups.dp
    if group.size() == 1 or not isinstance(_inner(trainer.optimizer, parameter), DistributedOptimizer):
        assert values is not None  # this rank has all of the parameter's state
        return values.detach().view(parameter.shape)
    full = torch.zeros(parameter.numel(), device=parameter.device)
    if values is not None:
        full[start : start + values.numel()] = values.detach().view(-1)
    # Every element is 0 but on one rank, so the sum is exact.
    dist.all_reduce(full, group=group)
    return full.view(parameter.shape)


def _described(like: ShardedTensor | ShardedTensorFactory, what: str, data: Tensor) -> Any:
    changes: dict[str, Any] = {"key": f"optimizer.{what}.{like.key}", "data": data}
    if isinstance(like, ShardedTensor):
        changes["dtype"] = data.dtype
    return replace(like, **changes)
