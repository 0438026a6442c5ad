"""Sizes of a model that decide whether vLLM can serve it, and the memory of its cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.errors import EnvironmentProblem
from rl_huggingface.foreign import read_json_object
from rl_huggingface.model_folder import check_config

if TYPE_CHECKING:
    from rl_core.config.sections import InitConfig, ModelConfig

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Attention head sizes that vLLM's CPU kernels are compiled for; others crash."""

CPU_BLOCK_SIZE = 32
"""Tokens per cache block on the CPU: what its kernels are compiled for, and the unit prefixes are shared in."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only model: ``layers`` of ``heads`` queries and ``kv_heads`` keys of ``head_size``.

    ``experts`` per layer are 0 in a dense model.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    experts: int = 0

    def cache_bytes(self, tokens: int, dtype: str) -> int:
        """Bytes of keys and values of ``tokens`` tokens."""
        return 2 * self.layers * self.kv_heads * self.head_size * ITEM_BYTES[dtype] * tokens


def shape_of_init(init: InitConfig) -> ModelShape:
    """The shape of a model built from scratch."""
    head_size = init.extra.get("head_dim") or init.hidden_size // init.heads
    return ModelShape(init.layers, init.heads, init.kv_heads or init.heads, int(head_size), _experts(init.extra))


def shape_of_config(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape in a Hugging Face ``config.json``; None where it does not use the usual fields."""
    text = config.get("text_config") or config
    try:
        heads = int(text["num_attention_heads"])
        head_size = int(text.get("head_dim") or text["hidden_size"] // heads)
        kv_heads = int(text.get("num_key_value_heads") or heads)
        return ModelShape(int(text["num_hidden_layers"]), heads, kv_heads, head_size, _experts(text))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def _experts(fields: Mapping[str, Any]) -> int:
    """Experts per layer of a mixture, whatever its architecture calls them."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return max(int(fields.get(name) or 0) for name in names)


def shape_of_model(model: ModelConfig) -> ModelShape | None:
    """The shape as far as it is known before the run: of ``init``, or of a folder that is already there."""
    if model.init is not None:
        return shape_of_init(model.init)
    file = os.path.join(model.path or "", "config.json")
    try:
        config = read_json_object(file)
        check_config(config, where=Path(file))
    except EnvironmentProblem:
        return None  # the check of the model's folder reports what is wrong with it
    return shape_of_config(config)


def cpu_cache_bytes(shape: ModelShape, *, sequences: int, length: int, dtype: str) -> int:
    """Size of a cache on the CPU that holds ``sequences`` of ``length`` tokens, in whole blocks.

    vLLM keeps one block for itself.
    """
    blocks = sequences * -(-length // CPU_BLOCK_SIZE) + 1
    return shape.cache_bytes(blocks * CPU_BLOCK_SIZE, dtype)


def shape_finding(shape: ModelShape, *, device: str, tensor_parallel: int) -> tuple[str, str] | None:
    """Why an engine on ``device`` (``cpu`` or ``cuda``) cannot serve ``shape``: a message and what to do."""
    if device == "cpu" and shape.head_size not in CPU_HEAD_SIZES:
        return (
            f"vLLM on the CPU has no attention for heads of size {shape.head_size}; "
            f"it has {', '.join(map(str, CPU_HEAD_SIZES))}",
            "change the number of heads (their size is hidden_size / heads, or head_dim), or use generator: {name: hf}",
        )
    if device == "cpu" and shape.experts:
        return (
            f"vLLM on the CPU keeps the old weights of a mixture's experts ({shape.experts} per layer) in an update",
            "use a model without experts, or generator: {name: hf}",
        )
    if shape.heads % tensor_parallel:
        return (
            f"{shape.heads} attention heads cannot be split evenly over generator.tensor_parallel {tensor_parallel}",
            f"set generator.tensor_parallel to a divisor of {shape.heads}",
        )
    return None
