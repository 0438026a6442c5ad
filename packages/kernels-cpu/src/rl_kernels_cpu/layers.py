"""Having a transformers model call these layers."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_kernels_cpu.attention import Heads
from rl_kernels_cpu.distinct import Distinct
from rl_kernels_cpu.halves import Attention, FeedForward, Frame
from rl_kernels_cpu.norm import Norm
from rl_kernels_cpu.ragged import RaggedRows, missing_rows
from rl_kernels_cpu.rotary import Rotation

_KNOWN = frozenset(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "mistral", "qwen2", "qwen3"))
"""By name, because importing them costs what only one of them is needed for."""


def fits(model: PreTrainedModel) -> bool:
    """Whether the model's layers are as this package expects them: no adapters, no other activation."""
    return (
        type(model).__module__ in _KNOWN
        and model.config.hidden_act == "silu"
        and all(type(m) is nn.Linear for layer in _body(model).layers for m in projections(layer))
    )


def projections(layer: Any) -> list[Any]:
    """Of a decoder layer: to queries, keys, values and back; gate, up and down."""
    attention, mlp = layer.self_attn, layer.mlp
    around = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*around, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _body(model: PreTrainedModel) -> Any:
    """The model without its head; what it consists of is for its class to say, not for a type."""
    return model.base_model


def use_own_layers(model: PreTrainedModel) -> None:
    """Have the layers and the last norm of ``model`` computed here; its forward then needs ``rows=``.

    With ``wanted=`` (int64 [M]) it returns the hidden states of these positions only, [1, M, H], and skips most of the
    last layer for the others. With ``distinct=`` equal tokens share a part of the first layer.

    Args:
        model: one that :func:`fits`, on the CPU, with :func:`rl_kernels_cpu.ragged.use_ragged_attention`.
    """
    body = _body(model)
    for layer in body.layers:
        layer.forward = functools.partial(
            _layer, layer, is_first=layer is body.layers[0], is_last=layer is body.layers[-1]
        )
    body.norm.forward = functools.partial(_norm, body.norm)


def use_transformers_layers(model: PreTrainedModel) -> None:
    """Undo :func:`use_own_layers`."""
    for module in (*_body(model).layers, _body(model).norm):
        module.__dict__.pop("forward", None)


def _layer(
    layer: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    is_first: bool,
    is_last: bool,
    rows: RaggedRows | None = None,
    wanted: Tensor | None = None,
    distinct: Distinct | None = None,
    **_further: Any,
) -> Tensor:
    """In the place of the layer's ``forward``: [1, U, H] in and out; out of the last one [1, M, H]."""
    if rows is None:
        raise missing_rows()
    attention, between = layer.self_attn, layer.post_attention_layernorm
    width, linear = attention.head_dim, projections(layer)
    heads = Heads(
        queries=linear[0].out_features // width,
        keys=linear[1].out_features // width,
        width=width,
        scale=attention.scaling,
        window=_window(attention),
    )
    cosines, sines = position_embeddings
    rotation = Rotation.of((cosines[0], sines[0]))
    epsilon = layer.input_layernorm.variance_epsilon
    frame = Frame(
        heads,
        rotation,
        rows,
        epsilon,
        wanted=wanted if is_last else None,
        distinct=distinct if is_first else None,
    )
    parameters = [p for module in linear for p in (module.weight, module.bias)]
    head_norms = [getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm")]
    x = Attention.apply(hidden_states[0], frame, layer.input_layernorm.weight, *parameters[:8], *head_norms)
    return FeedForward.apply(x, between.variance_epsilon, between.weight, *parameters[8:])


def _window(attention: Any) -> int | None:
    """Per layer in some architectures, in others for all."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return Norm.apply(hidden_states, module.weight, module.variance_epsilon)
