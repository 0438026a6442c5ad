"""Models that are never whole in any rank's memory: built without storage, sharded, then read piece by piece.

A rank reads from the safetensors files only the rows and columns it keeps.
"""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from rl_core.contracts.model import Head, ModelSpec
from rl_huggingface.foreign import foreign
from rl_torch.architectures import attention_of
from rl_torch.models import auto_class, build_config, skeleton
from rl_torch.policy import PolicyModel, ScalarModel
from rl_torch.pretrained import weight_plan
from rl_torch.weight_plan import WeightPlan
from torch import nn
from transformers import PreTrainedModel

from rl_backend_fsdp2.adapters import is_adapter, outside_name
from rl_backend_fsdp2.dtensors import local, own_slice


def empty_model(spec: ModelSpec, head: Head) -> tuple[PreTrainedModel, WeightPlan] | None:
    """``spec``'s model with parameters on the meta device, and where they are read from.

    None where only transformers can load it, as a whole: a model from scratch, with code of its own, in older formats
    than safetensors, or with weights that it initialises or converts by their numbers.

    Raises:
        EnvironmentProblem: the folder cannot be read, lacks weights, or they are not those of its config.
    """
    if spec.path is None or spec.trust_remote_code:
        return None
    config = build_config(spec)
    auto = auto_class(config, head)
    plan = weight_plan(spec.path, lambda: skeleton(config, head))
    if plan is None:
        return None
    with foreign(spec.path):
        # Buffers (rotary frequencies) are computed, so they keep their storage. Only now: their size is the config's.
        with init_empty_weights(include_buffers=False):
            model = auto.from_config(config, dtype=torch.float32, attn_implementation=attention_of(config, auto))
        model.tie_weights()
    return model.eval(), plan


@torch.no_grad()
def fill(
    model: PolicyModel | ScalarModel, plan: WeightPlan, device: torch.device, *, compute_device: torch.device
) -> None:
    """Give a sharded model on the meta device its storage and read this rank's part of every parameter and buffer.

    Adapters are given storage only. A scalar head that the files lack is zero.

    Args:
        device: where parameters are kept.
        compute_device: where the model runs, and buffers have to be.
    """
    _allocate(model, device, compute_device)
    for name, parameter in model.model.named_parameters():
        if is_adapter(name):
            continue
        outside = outside_name(name)
        if outside in plan.new:
            local(parameter).zero_()
        else:
            local(parameter).copy_(plan.read(outside, own_slice(parameter)))
    for name, buffer in model.model.named_buffers():
        if not is_adapter(name) and outside_name(name) in plan:  # a persistent one, such as a router's correction
            buffer.copy_(plan.read(outside_name(name)))
    plan.close()


def _allocate(model: nn.Module, device: torch.device, compute_device: torch.device) -> None:
    """Storage for every parameter on the meta device; buffers and the ties between parameters stay as they are."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                places.setdefault(parameter, []).append((module, name))
    for parameter, owners in places.items():
        made = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
        for module, name in owners:
            module._parameters[name] = made
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(compute_device)
