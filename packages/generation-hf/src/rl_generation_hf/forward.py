"""Forward passes of decoding: whole prompts (prefill), then one token per running completion."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from rl_torch.kernels.contract import Decoding, KernelChoice, Use
from rl_torch.kernels.installed import chosen
from torch import Tensor
from transformers import PreTrainedModel

from rl_generation_hf.cache import SlotCache
from rl_generation_hf.masks import AttentionPattern

logger = logging.getLogger(__name__)


def forward_of(model: PreTrainedModel, cache: SlotCache, kernels: KernelChoice = "none") -> Decoding:
    """The fastest way to call ``model`` that computes what the model computes without a cache, which is tried.

    By a kernel; else as it is with the cache of keys and values; else without one.

    Raises:
        ConfigError: ``kernels`` names one that is not installed.
    """
    pattern = AttentionPattern.of(model)
    if pattern is not None:
        if (found := _by_kernel(model, cache, pattern, kernels)) is not None:
            return found
        whole = WholeModel(model, cache, pattern)
        if _agrees(whole, model, cache):
            return whole
    logger.warning(
        "generator hf: %s keeps a state that a cache of keys and values cannot hold, so every step reads the whole "
        "sequence again: correct, but slow for long ones",
        type(model).__name__,
    )
    return Recomputing(model, cache)


def _by_kernel(
    model: PreTrainedModel, cache: SlotCache, pattern: AttentionPattern, choice: KernelChoice
) -> Decoding | None:
    """By the first of the config's kernels that fits and agrees; the log says which, and why not others."""
    use = Use("decoding", model.device.type)
    for kernel in chosen(choice):
        reason = kernel.expects(use) or kernel.fits(model, use)
        if reason is None:
            applied = kernel.apply(model, use)
            made = applied.decoding(cache, pattern) if applied.decoding else WholeModel(model, cache, pattern)
            if _agrees(made, model, cache):
                logger.info("generator hf: kernel %s is used: %s", kernel.name, ", ".join(applied.parts))
                return made
            applied.remove()
            reason = "it does not compute what the model does"
        level = logging.INFO if choice == "auto" else logging.WARNING
        logger.log(level, "generator hf: kernel %s is not used: %s", kernel.name, reason)
    return None


@torch.no_grad()
def _agrees(forward: Decoding, model: PreTrainedModel, cache: SlotCache) -> bool:
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
