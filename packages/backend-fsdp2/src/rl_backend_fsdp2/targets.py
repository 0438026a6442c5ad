"""Which linear layers of a model get an adapter: chosen by whole names, so that unlike modules never stand in for
each other (a dense layer's ``down_proj`` and the fused experts' parameter of the same name)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import torch
from rl_core.contracts.model import AdapterSpec
from rl_core.errors import ConfigError
from rl_torch.layer_names import is_named, last_part
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl_backend_fsdp2.layers import decoder_layers

logger = logging.getLogger(__name__)

_ROUTER = re.compile(r"(^|[._])(gate|router|wg)$|(^|\.)router\.")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers in ``model``'s decoder blocks that compute ``x W + b`` and no more, by their whole names.

    A subclass that does something else (a router that returns scores and choices) is not one of them, nor are those of
    a state-space mixer (Gu & Dao 2023) but its ``in_proj``: kernels read their weights, and would miss an adapter.
    """
    inside = {module for layer in decoder_layers(model) for module in layer.modules()}
    mixers = [n for n, m in model.named_modules() if hasattr(m, "A_log") and hasattr(m, "D")]
    read_by_kernels = {f"{mixer}.{part}" for mixer in mixers for part in ("x_proj", "dt_proj", "out_proj")}
    linear = {n: m for n, m in model.named_modules() if m in inside and isinstance(m, nn.Linear | Conv1D)}
    return {name: module for name, module in linear.items() if name not in read_by_kernels and _is_plain(module)}


@torch.no_grad()
def _is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer's forward, which a subclass may have replaced, computes ``x W + b``."""
    if type(layer).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    # Tried with small weights in place of its own, which may have no storage yet.
    draws = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=draws) for shape in ((1, 2, 3), (5, 3), (5,)))
    tensors = {"weight": weight} if layer.bias is None else {"weight": weight, "bias": bias}
    try:
        result = torch.func.functional_call(layer, tensors, (x,))
    except Exception:  # noqa: BLE001 - code of any model
        return False
    expected = nn.functional.linear(x, **tensors)
    return isinstance(result, torch.Tensor) and result.shape == expected.shape and torch.allclose(result, expected)


def choose_targets(adapter: AdapterSpec, model: PreTrainedModel) -> list[str]:
    """Whole names of the layers that get an adapter.

    Without ``target_modules`` these are all linear layers of the decoder blocks, except routers (which send a token
    to its experts), layers that share a weight, and what peft could not load again. An entry of ``target_modules`` is
    a name's end, cut at a dot.

    Raises:
        ConfigError: an entry names no such layer, or one that cannot have this kind of adapter; or none is left.
    """
    layers = linear_layers(model)
    unloadable = _taken_for_experts(model, layers) if adapter.kind == "dora" else set()
    without = {**_sharing(model, layers), **_renamed(model, layers)}
    default = [n for n in layers if not _ROUTER.search(n) and last_part(n) not in unloadable and n not in without]
    chosen: set[str] = set()
    for target in adapter.target_modules:
        found = [n for n in layers if is_named(n, target)]
        if not found:
            raise ConfigError(_unknown_target(target, model, layers, default))
        odd = next((n for n in found if last_part(n) in unloadable), None)
        if odd is not None:
            raise ConfigError(
                f"model.adapter.target_modules: {odd} cannot have a dora adapter, because peft takes "
                f"{last_part(odd)!r} in {model.config.model_type} models for the fused experts, which have no DoRA\n"
                f"    set model.adapter.name: lora, or target_modules: {_listed(default)}"
            )
        odd = next((n for n in found if n in without), None)
        if odd is not None:
            raise ConfigError(
                f"model.adapter.target_modules: {odd} cannot have an adapter, because {without[odd]}\n"
                f"    set target_modules: {_listed(default)}"
            )
        chosen.update(found)
    if not (chosen or default):
        raise ConfigError(
            f"model.adapter: {type(model).__name__} has no linear layers in its decoder blocks that an adapter could "
            "be put on\n    remove model.adapter"
        )
    fused = _fused_experts(model)
    if fused:
        logger.info("experts that are fused into one parameter (%s) get no adapter", ", ".join(_ends(fused)))
    return [n for n in layers if n in chosen] if chosen else default


def peft_targets(adapter: AdapterSpec, model: PreTrainedModel, names: Iterable[str]) -> dict[str, list[str]]:
    """``target_modules`` and ``target_parameters`` of a peft config that means the layers ``names``, and no others.

    peft takes ``gate_proj``, ``up_proj`` and ``down_proj`` of a model with fused experts for these experts, wherever
    they are. It does not with parameters that are named in full; their adapters are saved under the same names.

    Args:
        model: with or without adapters.
    """
    names = list(names)
    by_weight = _taken_for_experts(model, names) if adapter.kind == "lora" else set()
    modules = [n for n in names if last_part(n) not in by_weight]
    others = [n for n, _ in model.named_modules() if n and n not in modules]
    ends = _ends(modules)
    exact = not any(is_named(other, end) for end in ends for other in others)
    found = {"target_modules": ends if exact else modules}
    if len(modules) < len(names):
        found["target_parameters"] = [f"{n}.weight" for n in names if last_part(n) in by_weight]
    return found


def _taken_for_experts(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Last parts of ``names`` that peft, when it loads an adapter, takes for fused experts or their router."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    found = set()
    for end in {last_part(n) for n in names}:
        config = LoraConfig(target_modules=[end])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # it is one of several that peft fuses
            found.add(end)
            continue
        if end not in (config.target_modules or ()):
            found.add(end)
    return found


def _sharing(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Why those of ``names`` cannot have an adapter of which other layers have the weight (Zamba's blocks).

    Each would get its own, and a full export has only one weight for the sum.
    """
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    weights = {n: id(model.get_parameter(f"{n}.weight")) for n in names}
    return {
        n: f"other layers have the same weight ({', '.join(users[weight][:2])})"
        for n, weight in weights.items()
        if len(users[weight]) > 1
    }


def _renamed(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Why those of ``names`` cannot have an adapter that peft, when it loads one, looks for under another name.

    peft applies to an adapter's names what transformers does to those of old checkpoints of the family.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    saved = {f"base_model.model.{n}.lora_A.weight": n for n in names}
    found = convert_peft_adapter_state_dict_for_transformers(
        model, LoraConfig(), {key: torch.zeros(1, 1) for key in saved}
    )
    return {n: "peft looks for it under another name when it loads it" for key, n in saved.items() if key not in found}


def _fused_experts(model: nn.Module) -> list[str]:
    """Names of parameters [experts, rows, columns]."""
    return [n for layer in decoder_layers(model) for n, p in layer.named_parameters() if p.ndim == 3]


def _unknown_target(target: str, model: PreTrainedModel, layers: Iterable[str], default: list[str]) -> str:
    where = "model.adapter.target_modules: "
    advice = f"\n    set model.adapter.target_modules: {_listed(default)}"
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and (is_named(name, target) or is_named(name.rpartition(".")[0], target)):
            return (
                f"{where}{target!r} means {name}, which holds all {parameter.shape[0]} experts of its layer in one "
                f"parameter; fused experts get no adapter{advice}"
            )
    for name, module in model.named_modules():
        if is_named(name, target) and not isinstance(module, nn.ModuleList):
            inside = any(module is m for layer in decoder_layers(model) for m in layer.modules())
            why = "is not a plain linear layer" if inside else "is outside of the decoder blocks"
            return f"{where}{name} ({type(module).__name__}) {why} and gets no adapter{advice}"
    return f"{where}the model's layers have no linear module {target!r}; they have {', '.join(_ends(layers))}"


def _listed(names: Iterable[str]) -> str:
    return f"[{', '.join(_ends(names))}]"


def _ends(names: Iterable[str]) -> list[str]:
    return sorted({last_part(n) for n in names})
