"""Models that are never whole in any rank's memory: built without storage, sharded, then read piece by piece.

A rank reads from the safetensors files only the rows and columns it keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from rl_core.contracts.model import Head, ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.models import build_config
from rl_torch.policy import PolicyModel, ScalarModel
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.hub import cached_file

from rl_backend_fsdp2.adapters import is_adapter, outside_name
from rl_backend_fsdp2.placement import local, own_slice

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
NEW_HEAD = "score.weight"


@dataclass(frozen=True)
class Source:
    """The safetensors files of a model: which file holds each parameter."""

    files: Mapping[str, Path]

    @classmethod
    def find(cls, path: str) -> Source | None:
        """The files of a Hugging Face folder or hub id; None where it has no safetensors."""
        options: Any = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        index = cached_file(path, _INDEX, **options)
        if index is not None:
            names = json.loads(Path(index).read_text())["weight_map"]
            found = {file: cached_file(path, file, **options) for file in set(names.values())}
            return cls({name: Path(found[file]) for name, file in names.items() if found[file]})
        single = cached_file(path, _SINGLE, **options)
        if single is None:
            return None
        with safe_open(single, framework="pt") as file:
            return cls({name: Path(single) for name in file.keys()})  # noqa: SIM118 - not a mapping


def empty_model(spec: ModelSpec, head: Head) -> tuple[PreTrainedModel, Source] | None:
    """``spec``'s model with parameters on the meta device, and where they are read from.

    None where that cannot be done: a model from scratch, a folder without safetensors, or one whose names are not
    the model's own (transformers then converts them, which needs the whole model).

    Raises:
        EnvironmentProblem: the folder cannot be read, or lacks weights.
    """
    if spec.path is None or spec.trust_remote_code:
        return None
    source = Source.find(spec.path)
    if source is None:
        return None
    config = build_config(spec)
    auto: Any = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    if head == "scalar":
        config.num_labels = 1
    try:
        # Buffers (rotary frequencies) are computed, not read, so they keep their storage.
        with init_empty_weights(include_buffers=False):
            model = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"cannot build a {config.model_type!r} model from {spec.path!r}: {error}") from error
    model.tie_weights()
    lacking = [name for name in _stored_names(model) if name not in source.files and name != NEW_HEAD]
    return None if lacking else (model.eval(), source)


def _stored_names(model: nn.Module) -> list[str]:
    """Parameter names, of tied ones the first."""
    return [name for name, _ in model.named_parameters()]


@torch.no_grad()
def fill(model: PolicyModel | ScalarModel, source: Source, device: torch.device) -> None:
    """Give a sharded model on the meta device its storage and read this rank's part of every parameter.

    Adapters are given storage only. A scalar head that the files lack is zero.
    """
    _allocate(model, device)
    by_file: dict[Path, list[tuple[str, torch.Tensor]]] = {}
    for name, parameter in model.model.named_parameters():
        outside = outside_name(name)
        if is_adapter(name):
            continue
        if outside in source.files:
            by_file.setdefault(source.files[outside], []).append((outside, parameter))
        else:
            local(parameter).zero_()
    for path, parameters in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name, parameter in parameters:
                local(parameter).copy_(file.get_slice(name)[own_slice(parameter)])


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Storage for everything on the meta device; buffers and the ties between parameters stay as they are."""
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
                module._buffers[name] = buffer.to(device)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for parameter in module._get_fsdp_state()._fsdp_param_group.fsdp_params:  # as FSDP does at its first use
                parameter.reset_sharded_param()
