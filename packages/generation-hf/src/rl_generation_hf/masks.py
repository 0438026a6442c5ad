"""Attention masks for left-aligned rows of different lengths, with sliding windows where a model has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

_FULL, _SLIDING = "full_attention", "sliding_attention"

_OWN_MASKS = frozenset(("gpt_neo", "moshi"))
"""GPT-Neo has windows in its layers' own masks, and Moshi ignores the one that its config names."""

Mask = Tensor | dict[str, Tensor | None] | None


@dataclass(frozen=True)
class AttentionPattern:
    """The attention pattern of a model's layers.

    Attributes:
        window: width of the sliding window in tokens (its own position included), or None.
        mixed: layers differ, and the model takes one mask per layer type.
        dense: its attention takes no missing mask for a causal one (that of transformers' eager does not).
    """

    window: int | None
    mixed: bool
    dense: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> AttentionPattern | None:
        """Read it from a model's config; None for other layers (chunks, Mamba, linear attention)."""
        config: PretrainedConfig = model.config.get_text_config(decoder=True)
        types = set(getattr(config, "layer_types", None) or ())
        if model.config.model_type in _OWN_MASKS or types - {_FULL, _SLIDING} or getattr(model, "_is_stateful", False):
            return None
        window = getattr(config, "sliding_window", None)
        if types and _SLIDING not in types:
            window = None
        dense = model.config._attn_implementation == "eager"
        return cls(window=window, mixed=window is not None and _FULL in types, dense=dense)

    def prefill(self, length: int, like: Tensor) -> Mask:
        """Mask of a prompt forward of ``length`` columns; None where plain causal attention will do.

        Rows are padded on the right, so no real token sees padding.
        """
        if self.window is None or length <= self.window:
            return None
        return self._build(torch.arange(length, device=like.device)[None], length, like, full_needed=self.dense)

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
