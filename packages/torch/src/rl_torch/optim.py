"""AdamW from an :class:`~rl_core.contracts.model.OptimizerSpec`, and its learning-rate factor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from rl_core.contracts.model import OptimizerSpec
from torch import Tensor
from torch.nn import Parameter

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, besides the number of steps."""


def build_adamw(parameters: Iterable[Parameter], spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused on CPU and CUDA. Norms and biases (1-D) are not decayed.

    Parameters on different device meshes are in groups of their own, because one fused update cannot mix them.
    """
    groups: dict[tuple[object, bool], list[Parameter]] = {}
    for parameter in (p for p in parameters if p.requires_grad):
        groups.setdefault((getattr(parameter, "device_mesh", None), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": spec.weight_decay if decayed else 0.0}
            for (_, decayed), members in sorted(groups.items(), key=lambda item: not item[0][1])
        ],
        lr=spec.learning_rate,
        betas=spec.betas,
        eps=spec.eps,
        fused=True,
    )


def learning_rate(spec: OptimizerSpec, completed_steps: int) -> float:
    """The learning rate of the optimizer step that follows ``completed_steps`` steps.

    ``learning_rate · f``: f rises linearly from 1/warmup_steps to 1 over ``warmup_steps`` steps, then
    with p = (completed - warmup) / (total - warmup), clipped to [0, 1], and r = ``min_lr_ratio``:
    ``1`` (constant), ``1 - (1-r)·p`` (linear) or ``r + (1-r)·(1 + cos πp)/2`` (cosine). The factor
    reaches r when ``total_steps`` steps are completed, so the last step still learns.
    """
    if completed_steps < spec.warmup_steps:
        return spec.learning_rate * (completed_steps + 1) / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    decay_steps = max(spec.total_steps - spec.warmup_steps, 1)
    progress = min((completed_steps - spec.warmup_steps) / decay_steps, 1.0)
    shape = 1 - progress if spec.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return spec.learning_rate * (spec.min_lr_ratio + (1 - spec.min_lr_ratio) * shape)


def clipping(norm: float, limit: float | None) -> float:
    """The factor that brings a gradient of this norm down to ``limit``."""
    return limit / (norm + 1e-6) if limit is not None and norm > limit else 1.0


def take_step(optimizer: torch.optim.Optimizer, gradients: list[Tensor], *, rate: float, shrink: float) -> None:
    """Multiply ``gradients``, which are those of the optimizer's parameters, by ``shrink``, and step."""
    if shrink != 1.0:
        torch._foreach_mul_(gradients, shrink)
    set_learning_rate(optimizer, rate)
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use ``value`` for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """AdamW's state of a parameter, with the moments that its first step would create."""
    state = optimizer.state[parameter]
    for moment in MOMENTS:
        if moment not in state:
            state[moment] = torch.zeros_like(parameter.detach())
    return state
