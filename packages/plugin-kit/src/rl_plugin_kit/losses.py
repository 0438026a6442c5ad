"""Losses that the suites train with, named by reference; they use methods of tensors and import no framework."""

from __future__ import annotations

from typing import Any

from rl_core.contracts.backend import Scale


def negative_log_likelihood(outputs: Any, batch: Any, scale: Scale) -> tuple[Any, dict[str, Any]]:
    """Minus the mean log-probability of the tokens with ``loss_mask``."""
    loss = -(outputs.logprobs * batch["loss_mask"]).sum() / scale.tokens
    return loss, {"nll": loss.detach()}


def not_a_number(outputs: Any, batch: Any, scale: Scale) -> tuple[Any, dict[str, Any]]:
    """A loss that must not lead to a step."""
    return outputs.logprobs.sum() * float("nan"), {}
