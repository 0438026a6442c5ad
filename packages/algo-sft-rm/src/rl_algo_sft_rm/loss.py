"""The loss of supervised fine-tuning."""

from __future__ import annotations

from typing import Any

import torch


def negative_log_likelihood(outputs: Any, batch: Any, scale: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """``- Σ_t w_t log π(y_t) / Σ w_t`` with the weights ``w`` in ``loss_mask``.

    Args:
        outputs: ``logprobs`` float [T].
        batch: token column ``loss_mask`` float32 [T]; weights may be fractional.
        scale: ``tokens`` = Σ w over the whole optimizer step.
    """
    weight = batch["loss_mask"]
    # torch.where, not a product alone: where the weight is 0 the log-prob is not defined by the contract.
    logprobs = torch.where(weight != 0, outputs.logprobs, torch.zeros_like(outputs.logprobs))
    return -(logprobs * weight).sum() / scale.tokens, {}
