"""Low-rank adapters through peft: attached, initialised, switched off, and merged into full weights.

A model with an adapter keeps its Hugging Face names: peft's ``q_proj.base_layer.weight`` is ``q_proj.weight`` outside.
peft, 260 modules, is imported where there is an adapter only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from rl_core.contracts.model import AdapterSpec
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_backend_fsdp2.dtensors import gather, write
from rl_backend_fsdp2.targets import choose_targets, peft_targets

if TYPE_CHECKING:
    from peft import PeftConfig

NAME = "default"
"""The adapter's name inside peft."""

BASE = ".base_layer"

HEAD = "score"
"""The scalar head, which is trained whole even with an adapter."""

_WRAPPER = "base"


def peft_config(adapter: AdapterSpec, targets: Mapping[str, list[str]], *, transposed: bool = False) -> PeftConfig:
    """peft's own description of ``adapter``.

    Args:
        targets: ``target_modules`` and ``target_parameters``.
        transposed: the layers store their weights as [in, out] (GPT-2's ``Conv1D``).
    """
    from peft import AdaLoraConfig, LoraConfig

    common: dict[str, Any] = {
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        **targets,
    }
    if adapter.kind == "adalora":
        # The step at which pruning ends is total_step - tfinal, and only the difference is ever used.
        return AdaLoraConfig(
            **common,
            target_r=adapter.rank,
            init_r=adapter.initial_rank,
            tinit=adapter.prune_from_step,
            tfinal=0,
            total_step=max(adapter.prune_to_step, adapter.prune_from_step + 1),
            deltaT=adapter.prune_every,
            orth_reg_weight=adapter.orthogonality,
        )
    return LoraConfig(**common, r=adapter.rank, use_dora=adapter.kind == "dora")


def saved_config(adapter: AdapterSpec, model: PreTrainedModel) -> PeftConfig:
    """What ``PeftModel.from_pretrained`` reads to put ``model``'s adapter on the base model again."""
    layers = adapted_layers(model)
    transposed = any(layer.fan_in_fan_out for layer in layers.values())
    config: Any = peft_config(adapter, peft_targets(adapter, model, layers), transposed=transposed)
    if _trained_head(model) is not None:
        config.modules_to_save = [HEAD]
    return config


def attach(model: PreTrainedModel, adapter: AdapterSpec) -> None:
    """Add the adapter's parameters to ``model`` in place (still to be filled by :func:`initialise`).

    The model's own parameters no longer need gradients, except a scalar head's.

    Raises:
        ConfigError: see :func:`rl_backend_fsdp2.targets.choose_targets`.
    """
    from peft import inject_adapter_in_model

    names = choose_targets(adapter, model)
    transposed = isinstance(model.get_submodule(names[0]), Conv1D)
    config = peft_config(adapter, {"target_modules": [f"{_WRAPPER}.{n}" for n in names]}, transposed=transposed)
    # Inside of a plain module, where peft does not know the architecture: it would take some names for experts'.
    inject_adapter_in_model(config, nn.ModuleDict({_WRAPPER: model}), NAME)
    head = _trained_head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) and not _is_constant(name))
    if head is not None:
        head.requires_grad_(True)
    for module in model.modules():
        if type(module).__module__.startswith("peft."):
            # DoRA caches its norms in evaluation mode, where it expects no training. Not model.train(): some models'
            # own layers are random there.
            module.training = True


def is_adapter(name: str) -> bool:
    """Whether a parameter or buffer (by its name inside peft) belongs to an adapter."""
    return ".lora_" in name or _is_constant(name)


def _is_constant(name: str) -> bool:
    return ".ranknum." in name


def outside_name(name: str) -> str:
    """The Hugging Face name of a parameter of the model itself."""
    return name.replace(f"{BASE}.", ".")


@torch.no_grad()
def initialise(model: nn.Module, adapter: AdapterSpec) -> None:
    """Fill the adapter's parameters, the same on any number of ranks; every rank takes part.

    The model computes what it did without: B (LoRA, DoRA) or Λ (AdaLoRA) is 0, and DoRA's magnitudes are the norms
    of the rows.
    """
    generator = torch.Generator().manual_seed(adapter.seed)
    for name, parameter in model.named_parameters():
        if not is_adapter(name) or _is_constant(name):
            continue
        if "lora_magnitude_vector" in name:
            layer: Any = model.get_submodule(name.partition(".lora_magnitude_vector")[0])
            base = gather(layer.base_layer.weight).float()
            write(parameter, torch.linalg.vector_norm(base, dim=0 if layer.fan_in_fan_out else 1).cpu())
        else:
            write(parameter, _first_value(name, tuple(parameter.shape), adapter, generator))
    for name, parameter in model.named_parameters():
        if _is_constant(name):
            parameter.fill_(float(adapter.initial_rank))


def _first_value(name: str, shape: tuple[int, ...], adapter: AdapterSpec, generator: torch.Generator) -> Tensor:
    """What peft starts from: uniform A and zero B; AdaLoRA normal P and Q, and zero Λ."""
    if adapter.kind == "adalora":
        return torch.zeros(shape) if ".lora_E." in name else torch.randn(shape, generator=generator) * 0.02
    if ".lora_B." in name:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])  # kaiming_uniform with a = √5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@contextmanager
def switched_off(model: nn.Module, off: bool = True) -> Iterator[None]:
    """Compute with the model's own weights inside the block."""
    layers = list(adapted_layers(model).values()) if off else []
    # Not enable_adapters(): that also changes requires_grad, which FSDP has taken note of.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the names of those they stand for."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _trained_head(model: nn.Module) -> nn.Module | None:
    return getattr(model, HEAD, None)


def merge(model: nn.Module, name: str, base: Tensor, adapter: AdapterSpec) -> Tensor:
    """The full weight ``name`` with its adapter, in float32; a collective for sharded parameters.

    Args:
        name: inside peft, ``….base_layer.weight``.
        base: the gathered weight [out, in], or [in, out] where the layer is a ``Conv1D``.
    """
    layer: Any = model.get_submodule(name.partition(BASE)[0])
    if layer.fan_in_fan_out:
        return _merged(layer, base.float().T, adapter).T.contiguous()
    return _merged(layer, base.float(), adapter)


def _merged(layer: Any, base: Tensor, adapter: AdapterSpec) -> Tensor:
    a, b = _weight(layer.lora_A[NAME]), _weight(layer.lora_B[NAME])
    if adapter.kind == "adalora":
        scale = layer.scaling[NAME] / (float(layer.ranknum[NAME]) + 1e-5)
        return base + scale * (b @ (a * layer.lora_E[NAME].detach().float()))
    weight = base + layer.scaling[NAME] * (b @ a)
    if adapter.kind == "dora":
        magnitude = _weight(layer.lora_magnitude_vector[NAME])
        weight = weight * (magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None]
    return weight


def _weight(owner: Any) -> Tensor:
    return gather(owner if isinstance(owner, Tensor) else owner.weight).detach().float()


def saved_name(name: str) -> str:
    """The name of an adapter's parameter in a folder that ``PeftModel.from_pretrained`` reads."""
    name = name.replace(f".lora_magnitude_vector.{NAME}.weight", ".lora_magnitude_vector")
    return "base_model.model." + name.replace(f".{NAME}", "")


def replicated(model: nn.Module, adapter: AdapterSpec | None) -> set[nn.Parameter]:
    """Parameters that every rank keeps whole: AdaLoRA ranks all of its triplets against each other."""
    if adapter is None or adapter.kind != "adalora":
        return set()
    return {p for n, p in model.named_parameters() if is_adapter(n)}


def sum_replicated_gradients(model: nn.Module, total: Callable[[Tensor], Tensor]) -> None:
    """Add up over ranks the gradients that FSDP does not look after."""
    for name, parameter in model.named_parameters():
        if is_adapter(name) and parameter.grad is not None and not isinstance(parameter, DTensor):
            total(parameter.grad)
