"""How a model is called while decoding: prompts at once, then one token per running completion."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl_generation_hf.cache import SlotCache
from rl_generation_hf.grouped_attention import use_grouped_attention
from rl_generation_hf.llama_layers import LlamaLayers
from rl_generation_hf.masks import AttentionPattern


class Forward(Protocol):
    """Calls a model with its cache; the cache has been told what comes (:class:`SlotCache`)."""

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts of ``lengths`` int64 [P] tokens, padded on the right to int64 [P, L].

        Returns:
            The logits behind the last token of each prompt, [P, vocabulary].
        """

    def decode(self, tokens: Tensor, positions: Tensor, *, longest: int, equal: bool) -> Tensor:
        """Read one token per row.

        Args:
            tokens: int64 [R].
            positions: int64 [R], their columns.
            longest: ``max(positions)``.
            equal: whether all positions are the same.

        Returns:
            The logits behind each token, [R, vocabulary].
        """

    def refresh(self) -> None:
        """The model's weights were replaced in place."""


def forward_of(model: PreTrainedModel, cache: SlotCache) -> Forward:
    """The fastest way to call ``model``: its layers taken apart where they are known and on the CPU, else as it is.

    Raises:
        ValueError: the model keeps a state other than keys and values.
    """
    pattern = AttentionPattern.of(model)
    if model.device.type == "cpu" and LlamaLayers.fit(model):
        return LlamaLayers(model, cache, pattern)
    use_grouped_attention(model)
    return WholeModel(model, cache, pattern)


class WholeModel:
    """Calls the model as transformers does."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache, pattern: AttentionPattern) -> None:
        self._model = model
        self._cache = cache
        self._pattern = pattern
        self._like = next(model.parameters())

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        length = tokens.shape[1]
        # Only the columns where some prompt ends are projected to the vocabulary.
        ends, which = torch.unique(lengths - 1, return_inverse=True)
        logits = self._model(
            input_ids=tokens,
            position_ids=torch.arange(length, device=tokens.device)[None],
            attention_mask=self._pattern.prefill(length, self._like),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=ends,
        ).logits
        return logits[torch.arange(len(tokens), device=tokens.device), which]

    def decode(self, tokens: Tensor, positions: Tensor, *, longest: int, equal: bool) -> Tensor:
        logits = self._model(
            input_ids=tokens[:, None],
            position_ids=(positions[:1] if equal else positions)[:, None],
            attention_mask=self._pattern.decode(positions, longest + 1, self._like, equal=equal),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits[:, -1]

    def refresh(self) -> None:
        pass  # nothing is kept of them
