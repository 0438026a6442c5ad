"""Having one model's layers computed by Liger, and no other's.

Liger changes the layers of a model, and the family's module of transformers with them: whatever the process builds of
that family afterwards has Liger's layers too. Here the module is put back at once. What Liger changes there alone, the
rotary embedding that attention calls by its global name, is given to this model's attention layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from liger_kernel.transformers import _apply_liger_kernel_to_instance
from rl_torch.kernels.contract import Use
from torch import nn
from transformers import PreTrainedModel

FAMILIES = frozenset(
    {
        *("exaone4", "gemma", "gemma2", "gemma3_text", "granite", "llama", "ministral", "mistral", "mixtral", "olmo2"),
        *("olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3"),
    }
)
"""Text models whose module of transformers is all that Liger changes apart from their layers."""

_EXPERTS = frozenset({"mixtral", "qwen3_moe"})
"""Families with experts, which keep those of transformers: Liger's cannot be tested without a GPU."""

_SELECTIVE = "backend.activation_checkpointing: selective"
_AROUND = {"model.adapter", "backend.activation_checkpointing: full", _SELECTIVE}
"""Settings that leave norms, activations and rotary embeddings as they are."""


def why_not(model: PreTrainedModel) -> str | None:
    """Why Liger has nothing for ``model``."""
    if model.config.model_type not in FAMILIES:
        return f"it has no layers of {type(model).__name__}"
    return None


def apply(model: PreTrainedModel, use: Use) -> tuple[tuple[str, ...], Callable[[], None]]:
    """Have the layers of ``model`` computed by Liger, as far as the settings let it.

    Returns:
        what of them, for the log; and what puts the layers back.
    """
    settings = set(use.layers_fixed_by)
    if settings - _AROUND:
        return (), lambda: None
    # The rotary embedding is written over the projections, which selective recomputation keeps and would turn again.
    rope, gate = _SELECTIVE not in settings, model.config.model_type not in _EXPERTS
    module, before = sys.modules[type(model).__module__], _attributes(model)
    own = dict(vars(module))
    try:
        _apply_liger_kernel_to_instance(
            model, rope=rope, rms_norm=True, swiglu=gate, cross_entropy=False, fused_linear_cross_entropy=False
        )
        functions = {
            name: vars(module)[name] for name, function in own.items() if _is_replaced(vars(module)[name], function)
        }
    finally:
        vars(module).update(own)
    for layer, forward in _callers(model, functions):
        layer.forward = MethodType(forward, layer)
    names = ("RMSNorm", *(["RoPE"] if functions else []), *([_gate(model)] if gate else []))
    return names, lambda: _restore(before)


def _gate(model: PreTrainedModel) -> str:
    return "GeGLU" if model.config.model_type.startswith("gemma") else "SwiGLU"


def _attributes(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [(module, dict(vars(module))) for module in model.modules()]


def _restore(before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    """Set attributes of modules to what they were."""
    for module, attributes in before:
        for name in vars(module).keys() - attributes.keys():
            del vars(module)[name]
        vars(module).update(attributes)


def _is_replaced(found: Any, own: Any) -> bool:
    return isinstance(own, FunctionType) and found is not own


def _callers(model: nn.Module, functions: dict[str, Any]) -> Iterator[tuple[nn.Module, FunctionType]]:
    """Layers whose ``forward`` calls one of the family's ``functions``, and one that calls these instead."""
    made: dict[type, FunctionType] = {}
    for layer in model.modules():
        kind, own = type(layer), type(layer).forward
        if not isinstance(own, FunctionType) or own.__module__ != type(model).__module__:
            continue
        if not functions.keys() & set(own.__code__.co_names):
            continue
        if kind not in made:
            code, names = own.__code__, {**own.__globals__, **functions}
            made[kind] = FunctionType(code, names, own.__name__, own.__defaults__, own.__closure__)
            made[kind].__kwdefaults__ = own.__kwdefaults__
        yield layer, made[kind]
