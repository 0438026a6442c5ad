"""Low-rank adapters through peft: attached, initialised, switched off, and merged into full weights.

A model with an adapter keeps its Hugging Face names: peft's ``q_proj.base_layer.weight`` is ``q_proj.weight`` outside.
peft, 260 modules, is imported where there is an adapter only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from rl_core.contracts.model import AdapterSpec
from rl_core.errors import ConfigError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rl_backend_fsdp2.layers import decoder_layers
from rl_backend_fsdp2.placement import gather, write

if TYPE_CHECKING:
    from peft import PeftConfig

NAME = "default"
"""The adapter's name inside peft."""

BASE = ".base_layer"


def peft_config(adapter: AdapterSpec, model: nn.Module) -> PeftConfig:
    """peft's own description of ``adapter``.

    Raises:
        ConfigError: a target module does not exist.
    """
    from peft import AdaLoraConfig, LoraConfig

    targets = sorted(target_modules(adapter, model))
    common: dict[str, Any] = {"lora_alpha": adapter.alpha, "target_modules": targets, "lora_dropout": 0.0}
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


def target_modules(adapter: AdapterSpec, model: nn.Module) -> set[str]:
    """Last parts of the names of the linear layers that get, or have, an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    linear = {
        name.rpartition(".")[2]
        for layer in decoder_layers(model)
        for name, module in layer.named_modules()
        if isinstance(module, BaseTunerLayer)
        or (isinstance(module, nn.Linear) and BASE not in name and not is_adapter(name))
    }
    odd = sorted(set(adapter.target_modules) - linear)
    if odd:
        raise ConfigError(
            f"model.adapter.target_modules: the model's layers have no linear module {odd[0]!r}; "
            f"they have {', '.join(sorted(linear))}"
        )
    return set(adapter.target_modules) or linear


def attach(model: nn.Module, adapter: AdapterSpec) -> None:
    """Add the adapter's parameters to ``model`` in place (still to be filled by :func:`initialise`).

    The model's own parameters no longer need gradients, except a scalar head's.
    """
    from peft import inject_adapter_in_model

    head = getattr(model, "score", None)
    inject_adapter_in_model(peft_config(adapter, model), model, NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) and not _is_constant(name))
    if head is not None:
        head.requires_grad_(True)
    # DoRA caches its norms in evaluation mode, where it expects no training; there is no dropout.
    model.train()


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
            base = model.get_parameter(name.partition(".lora_magnitude_vector")[0] + f"{BASE}.weight")
            write(parameter, torch.linalg.vector_norm(gather(base).float(), dim=1).cpu())
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
    layers = _adapted_layers(model) if off else []
    # Not enable_adapters(): that also changes requires_grad, which FSDP has taken note of.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _adapted_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def merge(model: nn.Module, name: str, base: Tensor, adapter: AdapterSpec) -> Tensor:
    """The full weight ``name`` with its adapter, in float32; a collective for sharded parameters.

    Args:
        name: inside peft, ``….base_layer.weight``.
        base: the gathered weight [out, in].
    """
    layer: Any = model.get_submodule(name.partition(BASE)[0])
    a, b = _weight(layer.lora_A[NAME]), _weight(layer.lora_B[NAME])
    if adapter.kind == "adalora":
        scale = layer.scaling[NAME] / (float(layer.ranknum[NAME]) + 1e-5)
        return base.float() + scale * (b @ (a * layer.lora_E[NAME].detach().float()))
    weight = base.float() + layer.scaling[NAME] * (b @ a)
    if adapter.kind == "dora":
        magnitude = _weight(layer.lora_magnitude_vector[NAME])
        weight = weight * (magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None]
    return weight


def _weight(owner: nn.Module | Tensor) -> Tensor:
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
