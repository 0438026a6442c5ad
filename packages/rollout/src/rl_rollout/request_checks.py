"""What a request to a generator must satisfy, checked before any compute; for every generator."""

from __future__ import annotations

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.generator import SamplingParams


def check_sampling(sampling: SamplingParams, *, has_tokenizer: bool) -> None:
    """Raise ValueError for values outside their range, and for stop strings without a tokenizer."""
    for name, value, valid, rule in (
        ("n", sampling.n, sampling.n >= 1, "at least 1"),
        ("max_new_tokens", sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature < np.inf, "0 or more"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "0 (off) or more"),
        ("stop", sampling.stop, all(sampling.stop), "non-empty strings"),
    ):
        if not valid:
            raise ValueError(f"sampling: {name} is {value!r}; it must be {rule}")
    if sampling.stop and not has_tokenizer:
        raise ValueError(
            f"sampling: stop strings {', '.join(map(repr, sampling.stop))} need a tokenizer to read completions with, "
            "and the generator was loaded without one; pass tokenizer_path (a saved tokenizer folder) to load, "
            "or use stop_token_ids"
        )


def check_requests(
    requests: SequenceBatch, sampling: SamplingParams, *, context: int, context_from: str, vocab_size: int
) -> None:
    """Raise ValueError for prompts the model cannot continue; the message names the first such request.

    Args:
        context: longest sequence in tokens, 0 for unknown.
        context_from: the setting that limits it, for the message.
        vocab_size: token ids must be below it.
    """
    seed = requests.sequence_columns.get("seed")
    if seed is None or seed.dtype not in (np.int64, np.uint64) or seed.ndim != 1:
        found = "there is none" if seed is None else f"it is {seed.dtype} {list(seed.shape)}"
        raise ValueError(f"requests need a sequence column 'seed' (int64 or uint64, one value per prompt); {found}")
    lengths = requests.lengths
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise ValueError(
            f"request {empty[0]} has an empty prompt; a prompt needs at least one token, "
            "for example the beginning-of-sequence token"
        )
    _check_context(lengths, sampling.max_new_tokens, context=context, context_from=context_from)
    outside = np.flatnonzero((requests.tokens < 0) | (requests.tokens >= vocab_size))
    if len(outside):
        request = int(requests.sequence_ids[outside[0]])
        raise ValueError(
            f"request {request} holds token id {requests.tokens[outside[0]]}, and the model's vocabulary has "
            f"{vocab_size} entries; the tokenizer and the model do not belong together"
        )


def _check_context(lengths: np.ndarray, max_new_tokens: int, *, context: int, context_from: str) -> None:
    if not context:
        return
    too_long = np.flatnonzero(lengths + max_new_tokens > context)
    if not len(too_long):
        return
    worst = int(too_long[0])
    more = f" ({len(too_long) - 1} further requests are too long as well)" if len(too_long) > 1 else ""
    room = context - max_new_tokens
    advice = ["lower generator.max_new_tokens"]
    if context_from == "model.max_length":
        advice.append("raise model.max_length")
    if room > 0:
        advice.append(f"leave out prompts of more than {room} tokens")
    raise ValueError(
        f"request {worst}: its prompt of {lengths[worst]} tokens and max_new_tokens {max_new_tokens} make "
        f"{lengths[worst] + max_new_tokens} tokens, and the context is {context} ({context_from}){more}; "
        f"{', or '.join(advice)}"
    )
