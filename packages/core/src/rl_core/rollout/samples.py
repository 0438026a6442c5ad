"""Between text and tokens: prompts on the way in, finished samples on the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.chat import taken, template_options
from rl_core.contracts.data import Row
from rl_core.contracts.reward import Sample
from rl_core.contracts.tokenizer import Message, Tokenizer
from rl_core.errors import DataError
from rl_core.long_rows import LongRows


def encode_prompt(
    row: Row,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    max_new_tokens: int,
    tools: Sequence[Mapping[str, Any]] = (),
    section: str = "data",
    limit_name: str = "generator.max_new_tokens",
    long: LongRows | None = None,
) -> np.ndarray:
    """int32 [P]: a row's prompt, checked to leave room for a completion; empty where ``long`` leaves it out.

    Args:
        tools: JSON schemas of the environment's functions for the chat template; the row may have more.
        section: the config section that the row comes from, for messages.
        limit_name: the field that ``max_new_tokens`` comes from, for messages.
        long: what happens to a prompt that leaves no room; ``truncate`` keeps its end and its opening token. None: an
            error.
    """
    where = row.get("__where__", "a data row")
    if row.get("prompt") is None:
        raise DataError(
            f"{where}: there is no 'prompt' column (columns: {', '.join(k for k in row if not k.startswith('__'))})\n"
            f"    map one in the {section} section, e.g. prompt: question"
        )
    try:
        options = template_options(row, tools)
        lacking = options.keys() - taken(tokenizer.encode_prompt, options)
        if lacking:
            raise DataError(f"the tokenizer takes no {min(lacking)}, which the row or the environment has")
        tokens = tokenizer.encode_prompt(row["prompt"], **options)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__
    if not len(tokens):
        raise DataError(f"{where}: the prompt is empty")
    if len(tokens) + max_new_tokens > max_length:
        if long is not None and max_new_tokens < max_length:
            return _shortened(tokens, where, long, tokenizer, max_length - max_new_tokens)
        raise DataError(
            f"{where}: the prompt has {len(tokens)} tokens; with {limit_name} {max_new_tokens} that is "
            f"more than model.max_length {max_length}\n    raise model.max_length, lower {limit_name}, or drop the row"
        )
    return tokens


def _shortened(tokens: np.ndarray, where: str, long: LongRows, tokenizer: Tokenizer, room: int) -> np.ndarray:
    long.record(where, len(tokens))
    if long.on_long == "skip":
        return tokens[:0]
    opening = tokens[:1] if tokens[0] == tokenizer.special_tokens.get("bos_token_id") else tokens[:0]
    return np.concatenate([opening, tokens[len(tokens) - room + len(opening) :]])


def completion_tokens(batch: SequenceBatch) -> np.ndarray:
    """int64 [B]: tokens that the model wrote."""
    written = batch.lengths - batch.sequence_columns["prompt_length"]
    read = batch.sequence_columns.get("environment_tokens")
    return written if read is None else written - read


def to_samples(
    batch: SequenceBatch,
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    messages: Sequence[Sequence[Message]] | None = None,
) -> list[Sample]:
    """Decode generated sequences; ``rows[request]`` is each one's data row.

    ``messages`` are given for conversations: for each sequence what was said after the prompt.
    """
    samples = []
    columns = batch.sequence_columns
    environment_rewards = columns.get("environment_reward", np.zeros(len(batch), np.float32))
    prompts: dict[int, str] = {}  # a group shares its prompt, which is decoded once
    # Python's numbers, a column at once: taking them out of an array one by one costs as much as decoding.
    per_sequence = (
        batch.offsets[:-1].tolist(),
        batch.offsets[1:].tolist(),
        columns["prompt_length"].tolist(),
        columns["request"].tolist(),
        completion_tokens(batch).tolist(),
        columns["truncated"].astype(bool).tolist(),
        environment_rewards.tolist(),
        messages if messages is not None else [()] * len(batch),
    )
    for begin, end, cut, request, written, truncated, reward, turns in zip(*per_sequence, strict=True):
        if request not in prompts:
            prompts[request] = tokenizer.decode(batch.tokens[begin : begin + cut])
        said = tuple(turns)
        samples.append(
            Sample(
                row=rows[request],
                prompt=prompts[request],
                completion=_last_turn(said) if said else tokenizer.decode(batch.tokens[begin + cut : end]),
                completion_tokens=written,
                truncated=truncated,
                messages=said,
                environment_reward=reward,
            )
        )
    return samples


def _last_turn(messages: Sequence[Message]) -> str:
    return next(m["content"] for m in reversed(messages) if m["role"] == "assistant")


def sample_rows(samples: Sequence[Sample], rewards: np.ndarray) -> list[dict[str, Any]]:
    """Samples as plain rows for loggers; of a conversation the completion is all that was said, role by role."""
    return [
        {
            "prompt": s.prompt,
            "completion": "\n".join(f"{m['role']}: {m['content']}" for m in s.messages) or s.completion,
            "answer": s.row.get("answer"),
            "reward": float(r),
            **({"messages": [dict(m) for m in s.messages]} if s.messages else {}),
        }
        for s, r in zip(samples, rewards, strict=False)
    ]
