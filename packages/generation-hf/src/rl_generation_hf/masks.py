"""Attention masks for left-aligned rows of different lengths, with sliding windows where a model has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

_FULL, _SLIDING = "full_attention", "sliding_attention"

Mask = Tensor | dict[str, Tensor | None] | None


@dataclass(frozen=True)
class AttentionPattern:
    """Which keys a model's layers may see.

    Attributes:
        window: width of the sliding window in tokens (its own position included), or None.
        mixed: layers differ, and the model takes one mask per layer type.
    """

    window: int | None
    mixed: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> AttentionPattern:
        """Read it from a model's config.

        Raises:
            ValueError: the model keeps a state other than keys and values (Mamba, linear attention).
        """
        config: PretrainedConfig = model.config.get_text_config(decoder=True)
        types = set(getattr(config, "layer_types", None) or ())
        odd = sorted(types - {_FULL, _SLIDING})
        if odd or getattr(model, "_is_stateful", False):
            what = f"layers of type {', '.join(odd)}" if odd else "recurrent layers"
            raise ValueError(
                f"generator hf: {config.model_type} has {what}, which its cache of keys and values cannot hold; "
                "use another generator (`rl plugins` lists them)"
            )
        window = getattr(config, "sliding_window", None)
        if types and _SLIDING not in types:
            window = None
        return cls(window=window, mixed=window is not None and _FULL in types)

    def prefill(self, length: int, like: Tensor) -> Mask:
        """Mask of a prompt forward of ``length`` columns; None where plain causal attention will do.

        Rows are padded on the right, so no real token sees padding.
        """
        if self.window is None or length <= self.window:
            return None
        return self._build(torch.arange(length, device=like.device)[None], length, like, full_needed=False)

    def decode(self, positions: Tensor, length: int, like: Tensor, *, equal: bool) -> Mask:
        """Mask of one decoding step.

        Args:
            positions: int64 [R], the column each row writes and may see up to.
            length: columns read, ``max(positions) + 1``.
            like: a parameter: its dtype and device.
            equal: all positions are the same, so nothing but a window needs a mask.
        """
        if equal and (self.window is None or length <= self.window):
            return None
        return self._build(positions[:, None], length, like, full_needed=not equal)

    def _build(self, positions: Tensor, length: int, like: Tensor, *, full_needed: bool) -> Mask:
        """Additive masks [R, 1, queries, length], 0 where visible and -inf elsewhere."""
        columns = torch.arange(length, device=positions.device)
        distance = positions[:, None, :, None] - columns
        hidden = distance < 0
        full = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)
        if self.window is None:
            return full
        sliding = full.masked_fill(distance >= self.window, -torch.inf)
        if not self.mixed:
            return sliding
        # SDPA takes its causal fast path where there is no mask.
        return {_FULL: full if full_needed else None, _SLIDING: sliding}
