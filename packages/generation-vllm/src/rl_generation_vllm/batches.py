"""From what an engine sampled to the batch of the generator's contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rl_core.batch import SequenceBatch


@dataclass(frozen=True)
class Completion:
    """One sample: its tokens, one log-probability each, and whether it ended only because of its length."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    truncated: bool


def to_batch(requests: SequenceBatch, completions: Sequence[Completion], *, n: int, version: int) -> SequenceBatch:
    """Prompts followed by their completions, with the columns of the contract.

    Args:
        requests: B prompts.
        completions: B·n samples, prompt by prompt.
        n: samples per prompt.
        version: of the weights.
    """
    request = np.repeat(np.arange(len(requests), dtype=np.int64), n)
    prompt_length = requests.lengths[request]
    lengths = np.fromiter((len(c.tokens) for c in completions), np.int64, count=len(completions))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(prompt_length + lengths)])
    total = int(offsets[-1])
    within = np.arange(total, dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
    sampled = within >= np.repeat(prompt_length, np.diff(offsets))
    tokens = np.empty(total, np.int32)
    tokens[~sampled] = requests.tokens[requests.token_index(request)]
    tokens[sampled] = _flat([c.tokens for c in completions], np.int32)
    logprobs = np.zeros(total, np.float32)
    logprobs[sampled] = _flat([c.logprobs for c in completions], np.float32)
    return SequenceBatch(
        tokens,
        offsets,
        {
            "loss_mask": sampled.astype(np.float32),
            "sampled_logprobs": logprobs,
            "weights_version": np.full(total, version, np.int32),
        },
        {
            "request": request,
            "sample": np.tile(np.arange(n, dtype=np.int64), len(requests)),
            "truncated": np.fromiter((c.truncated for c in completions), bool, count=len(completions)),
            "prompt_length": prompt_length,
        },
    )


def _flat(parts: list[Sequence[float]], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype) for part in parts]) if parts else np.zeros(0, dtype)
