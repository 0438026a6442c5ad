"""Finished completions as what rewards read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.data import Row
from rl_core.contracts.reward import Sample
from rl_core.contracts.tokenizer import Message, Tokenizer
from rl_core.samples import completion_tokens


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
