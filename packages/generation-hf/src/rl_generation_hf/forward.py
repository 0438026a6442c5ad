"""Forward passes of decoding: whole prompts (prefill), then one token per running completion."""

from __future__ import annotations

import inspect
import logging
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl_generation_hf.cache import SlotCache
from rl_generation_hf.grouped_attention import use_grouped_attention
from rl_generation_hf.llama_layers import LlamaLayers
from rl_generation_hf.masks import AttentionPattern

logger = logging.getLogger(__name__)


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
    """The fastest way to call ``model`` that computes what the model computes without a cache.

    Its layers taken apart where they are known and on the CPU; else as it is with the cache of keys and values, which
    is tried; else without one.
    """
    pattern = AttentionPattern.of(model)
    if pattern is not None and model.device.type == "cpu" and LlamaLayers.fit(model):
        return LlamaLayers(model, cache, pattern)
    if pattern is not None:
        before = model.config._attn_implementation
        use_grouped_attention(model)
        whole = WholeModel(model, cache, pattern)
        if _agrees(whole, model, cache):
            return whole
        model.config._attn_implementation = before
    logger.warning(
        "generator hf: %s keeps a state that a cache of keys and values cannot hold, so every step reads the whole "
        "sequence again: correct, but slow for long ones",
        type(model).__name__,
    )
    return Recomputing(model, cache)


@torch.no_grad()
def _agrees(forward: Forward, model: PreTrainedModel, cache: SlotCache) -> bool:
    """Whether ``forward`` decodes two short prompts of different lengths as the model reads them as a whole."""
    device = model.device
    ids = torch.arange(1, 13, device=device).remainder(model.config.get_text_config(decoder=True).vocab_size).view(2, 6)
    lengths = torch.tensor([5, 3], device=device)
    expected = [
        model(input_ids=row[None, : n + 1], use_cache=False).logits[0, -2:] for row, n in zip(ids, (5, 3), strict=True)
    ]
    try:
        cache.resize(slots=2, columns=6, keep_rows=0, keep_columns=0)
        cache.start_prefill(source=torch.arange(2, device=device), first=0)
        first = forward.prefill(ids[:, :5], lengths)
        cache.start_step(positions=lengths, longest=5, equal=False)
        second = forward.decode(ids[[0, 1], lengths], lengths, longest=5, equal=False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError):
        # A family's own code, with a cache that it does not expect.
        return False
    finally:
        cache.release()
    whole = torch.stack(expected).float()
    tolerance = (1e-4 if first.dtype == torch.float32 else 5e-2) * (1 + whole.abs().max())
    return bool((torch.stack([first, second], 1).float() - whole).abs().max() <= tolerance)


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


class Recomputing:
    """Calls the model on whole sequences in every step, for models whose state is not (only) keys and values.

    The cache holds tokens: in the place of the first layer's keys.
    """

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        self._model = model
        self._tokens = cache.slot_layers[0]
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        stored = tokens[:, None, :, None]
        self._tokens.update(stored, stored)
        return self._logits(tokens, lengths - 1)

    def decode(self, tokens: Tensor, positions: Tensor, *, longest: int, equal: bool) -> Tensor:
        new = tokens[:, None, None, None]
        stored, _ = self._tokens.update(new, new)
        # What stands behind a row's end is left of earlier ones: a causal model does not look there.
        return self._logits(stored[:, 0, :, 0], positions)

    def refresh(self) -> None:
        pass  # nothing is kept of them

    def _logits(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Behind one place of each row, [R, vocabulary]."""
        kept, which = torch.unique(places, return_inverse=True)
        options: dict[str, Any] = {"logits_to_keep": kept} if self._keeps else {}
        logits = self._model(input_ids=tokens, use_cache=False, **options).logits
        return logits[torch.arange(len(tokens), device=tokens.device), which if self._keeps else places]
