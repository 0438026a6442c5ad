"""The loss that keeps a router's experts equally busy (Fedus et al. 2022, equations 4 to 6), as in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rl_core.errors import EnvironmentProblem
from torch import Tensor
from transformers import PreTrainedModel

from rl_torch.architectures import body_of


@dataclass(frozen=True)
class Balancing:
    """The load-balancing loss that a config sets by ``output_router_logits`` and ``router_aux_loss_coef``.

    Attributes:
        coefficient: weight of this loss, which is added to the algorithm's own.
        chosen: experts per token.
    """

    coefficient: float
    chosen: int

    def loss(self, router_logits: Sequence[Tensor], indices: Tensor) -> Tensor:
        """E · Σ_e (share of choices that e gets) · (its mean probability) over the tokens of all layers: a scalar.

        Args:
            router_logits: per layer, [R · L, E].
            indices: int64 [T], the position of every token; padding takes no part.
        """
        logits = torch.cat([layer.reshape(-1, layer.shape[-1]).index_select(0, indices) for layer in router_logits])
        shares = torch.softmax(logits, dim=-1)
        experts = logits.shape[-1]
        picked = torch.topk(shares, self.chosen, dim=-1).indices
        load = torch.bincount(picked.flatten(), minlength=experts) / len(logits)
        return experts * (load.to(shares.dtype) * shares.mean(0)).sum()


def balancing_of(config: Any) -> Balancing | None:
    """The loss that ``config`` sets; None if its router needs no loss, or is trained without."""
    text = config.get_text_config(decoder=True)
    coefficient = getattr(text, "router_aux_loss_coef", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if not getattr(text, "output_router_logits", False) or not coefficient or not chosen:
        return None
    return Balancing(float(coefficient), int(chosen))


@torch.no_grad()
def check_balancing(model: PreTrainedModel) -> None:
    """Try whether the model's layers say what their routers compute.

    Raises:
        EnvironmentProblem: they do not.
    """
    ids = torch.arange(1, 4, device=next(model.parameters()).device)[None]
    if not getattr(body_of(model)(input_ids=ids, use_cache=False, output_router_logits=True), "router_logits", None):
        raise EnvironmentProblem(
            f"config.json of the model has output_router_logits: true, but {type(model).__name__} does not return what "
            "its routers compute, which the balancing loss needs\n    set output_router_logits to false in config.json"
        )
