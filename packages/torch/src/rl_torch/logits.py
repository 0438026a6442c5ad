"""Transformations of ``hidden @ weight.T`` into a model's logits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rl_core.errors import EnvironmentProblem
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "logits_mup_width_multiplier")
"""Fields of configs by which logits are multiplied, or divided: Granite divides, HyperCLOVA X multiplies by its own."""

_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")

_LARGE = 100.0
"""Logits of this size show every cap in use (30 to 50); small ones do not, and are what random weights give."""


@dataclass(frozen=True)
class LogitTransform:
    """``z → cap · tanh(scale · z / cap)``, without the tanh where there is no cap (Gemma 2, Riviere et al. 2024)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """The model's logits of ``z``, any shape."""
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def gradient(self, gradient: Tensor, logits: Tensor | None) -> Tensor:
        """The gradient by ``z`` from that by ``logits``, this transform's result (read only where there is a cap)."""
        if self.cap is not None and logits is not None:
            gradient = gradient * (1 - (logits / self.cap).square())
        return gradient * self.scale if self.scale != 1.0 else gradient


@torch.no_grad()
def logit_transform(model: PreTrainedModel, ids: Tensor, hidden: Tensor) -> LogitTransform:
    """How ``model`` comes from ``hidden`` [..., H], what its output embedding reads for ``ids``, to its logits.

    Raises:
        EnvironmentProblem: in no known way.
    """
    plain, logits = _enlarged(model, ids, hidden)
    config = model.config.get_text_config(decoder=True)
    cap = next((value for value in _numbers(config, _CAPS)), None)
    scales = [f for value in _numbers(config, _SCALES) for f in (value, 1 / value)]
    tolerance = 1e-3 * (1e-3 + logits.abs().max())
    for scale in itertools.chain([1.0], scales):
        found = LogitTransform(scale, cap)
        if (found(plain) - logits).abs().max() <= tolerance:
            return found
    raise EnvironmentProblem(
        f"{type(model).__name__} makes its logits from its last hidden states in a way that is not known here: "
        "not a product with the output embedding, scaled or soft-capped\n"
        "    choose another architecture (docs/models.md lists those that work)"
    )


def _enlarged(model: PreTrainedModel, ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The output embedding's result and the model's logits, as if that result were large; float32 [..., V] both."""
    embedding = model.get_output_embeddings()
    plain = embedding(hidden)
    factor = _LARGE / float(plain.float().abs().max().clamp(min=1e-6))
    calls = []

    def enlarge(module: Any, inputs: Any, output: Tensor) -> Tensor:
        calls.append(module)
        return output * factor

    hook = embedding.register_forward_hook(enlarge)
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    return plain.float() * (factor if calls else 1.0), logits


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    values = [getattr(config, name, None) for name in names]
    return [float(value) for value in values if isinstance(value, int | float) and value]
