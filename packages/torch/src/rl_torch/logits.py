"""What a model does to ``hidden @ weight.T`` before it calls them logits."""

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

_CAPS = ("final_logit_softcapping", "output_logit_soft_cap")


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
def logit_transform(model: PreTrainedModel, hidden: Tensor, logits: Tensor) -> LogitTransform:
    """How ``model`` comes from ``hidden`` [..., H], its last hidden states, to its ``logits`` [..., V].

    Small logits do not show a cap, so one that the config names is always taken.

    Raises:
        EnvironmentProblem: in no known way.
    """
    plain = model.get_output_embeddings()(hidden).float()
    config = model.config.get_text_config(decoder=True)
    cap = next((value for value in _numbers(config, _CAPS)), None)
    scales = [f for value in _numbers(config, _SCALES) for f in (value, 1 / value)]
    tolerance = 1e-3 * (1e-3 + logits.float().abs().max())
    for scale in itertools.chain([1.0], scales):
        found = LogitTransform(scale, cap)
        if (found(plain) - logits.float()).abs().max() <= tolerance:
            return found
    raise EnvironmentProblem(
        f"{type(model).__name__} makes its logits from its last hidden states in a way that is not known here: "
        "not a product with the output embedding, scaled or soft-capped\n"
        "    choose another architecture (docs/models.md lists those that work)"
    )


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    values = [getattr(config, name, None) for name in names]
    return [float(value) for value in values if isinstance(value, int | float) and value]
