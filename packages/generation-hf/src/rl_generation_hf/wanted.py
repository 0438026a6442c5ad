"""Further columns that requests may want: log-probs of the prompt, and of the most likely tokens."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from rl_core.contracts.generation import TOP_LOGPROBS
from torch import Tensor
from transformers import PreTrainedModel

from rl_generation_hf.sampling import scaled_logprobs

# Logits of a prompt that exist at once. A longer prompt is read once for each such part.
_LOGITS = 2**27


def prompt_logprobs(model: PreTrainedModel, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities of a prompt's tokens given those before them, by a forward pass of its own.

    Args:
        tokens: int32 [P].
        temperature: 0 counts as 1.

    Returns:
        float32 [P], 0 for the first token.
    """
    ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
    found = np.zeros(len(tokens), np.float32)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    rows = max(1, _LOGITS // model.config.get_text_config(decoder=True).vocab_size) if keeps else len(tokens)
    for start in range(0, len(tokens) - 1, rows):
        stop = min(start + rows, len(tokens) - 1)
        where = torch.arange(start, stop, device=ids.device)
        options = {"logits_to_keep": where} if keeps else {}
        logits = model(input_ids=ids[None, :stop], use_cache=False, **options).logits[0]
        logprobs = scaled_logprobs(logits if keeps else logits[start:stop], temperature)
        found[start + 1 : stop + 1] = logprobs.gather(1, ids[start + 1 : stop + 1, None])[:, 0].cpu().numpy()
    return found


def top_logprobs(logits: Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The most likely tokens behind one place, over the full vocabulary, most likely first.

    Args:
        logits: [V].
        temperature: 0 counts as 1.

    Returns:
        int32 and float32 [K], K = ``TOP_LOGPROBS`` or V.
    """
    values, tokens = scaled_logprobs(logits, temperature).topk(min(TOP_LOGPROBS, len(logits)))
    return tokens.int().cpu().numpy(), values.cpu().numpy()
