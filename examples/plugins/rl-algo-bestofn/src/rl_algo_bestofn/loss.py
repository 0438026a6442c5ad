"""The loss. Backends import it by name; it never sees logits, padding, packing or ranks."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def negative_log_likelihood(outputs: Any, batch: Any, scale: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """``- Σ log π(y_t) / N`` over the completion tokens of the whole optimizer step; no metrics besides the loss."""
    return -(outputs.logprobs * batch["loss_mask"]).sum() / scale.tokens, {}
