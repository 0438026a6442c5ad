"""What a request to a generator must satisfy, checked before any compute; for every generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.generation import GenerationRequest, Sampling, Want
from rl_core.contracts.generator import SamplingParams


def check_sampling(sampling: SamplingParams | Sampling, *, has_tokenizer: bool) -> None:
    """Raise ValueError for values outside their range, and for stop strings without a tokenizer."""
    n = sampling.n if isinstance(sampling, SamplingParams) else 1
    for name, value, valid, rule in (
        ("n", n, n >= 1, "at least 1"),
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


def check_request(
    request: GenerationRequest,
    *,
    check_sampling: Callable[[Sampling], None],
    context: int,
    context_from: str,
    vocab_size: int,
    wants: frozenset[Want],
) -> None:
    """Raise ValueError for a single request that cannot be answered; the message names its id.

    Args:
        check_sampling: raises ValueError for sampling out of range, see :func:`check_sampling`.
        context: longest sequence in tokens, 0 for unknown.
        context_from: the setting that limits it, for the message.
        vocab_size: token ids must be below it.
        wants: what the generator can give besides.
    """
    if missing := sorted(request.want - wants):
        raise ValueError(
            f"request {request.id} wants {', '.join(missing)}, which this generator does not give for this model; "
            f"it gives {', '.join(sorted(wants)) or 'nothing besides tokens and log-probs'}"
        )
    try:
        check_sampling(request.sampling)
    except ValueError as error:
        raise ValueError(f"request {request.id}: {error}") from None
    tokens, most = request.tokens, request.sampling.max_new_tokens
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise ValueError(f"request {request.id}: its tokens are {tokens.dtype} {list(tokens.shape)}, not int32 [P]")
    _check_prompt(request.id, tokens, vocab_size)
    if context and len(tokens) + most > context:
        raise ValueError(_too_long(request.id, len(tokens), most, context=context, context_from=context_from))


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
        raise ValueError(_empty(str(empty[0])))
    most = sampling.max_new_tokens
    too_long = np.flatnonzero(lengths + most > (context or np.inf))
    if len(too_long):
        worst = int(too_long[0])
        further = len(too_long) - 1
        raise ValueError(
            _too_long(
                str(worst), int(lengths[worst]), most, context=context, context_from=context_from, further=further
            )
        )
    outside = np.flatnonzero((requests.tokens < 0) | (requests.tokens >= vocab_size))
    if len(outside):
        request = int(requests.sequence_ids[outside[0]])
        raise ValueError(_unknown_token(str(request), int(requests.tokens[outside[0]]), vocab_size))


def _check_prompt(request: str, tokens: np.ndarray, vocab_size: int) -> None:
    if not len(tokens):
        raise ValueError(_empty(request))
    outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        raise ValueError(_unknown_token(request, int(tokens[outside[0]]), vocab_size))


def _empty(request: str) -> str:
    return (
        f"request {request} has an empty prompt; a prompt needs at least one token, "
        "for example the beginning-of-sequence token"
    )


def _unknown_token(request: str, token: int, vocab_size: int) -> str:
    return (
        f"request {request} holds token id {token}, and the model's vocabulary has "
        f"{vocab_size} entries; the tokenizer and the model do not belong together"
    )


def _too_long(
    request: str, length: int, max_new_tokens: int, *, context: int, context_from: str, further: int = 0
) -> str:
    more = f" ({further} further requests are too long as well)" if further else ""
    room = context - max_new_tokens
    advice = ["lower generator.max_new_tokens"]
    if context_from == "model.max_length":
        advice.append("raise model.max_length")
    if room > 0:
        advice.append(f"leave out prompts of more than {room} tokens")
    return (
        f"request {request}: its prompt of {length} tokens and max_new_tokens {max_new_tokens} make "
        f"{length + max_new_tokens} tokens, and the context is {context} ({context_from}){more}; "
        f"{', or '.join(advice)}"
    )
