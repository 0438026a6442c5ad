"""Between text and tokens: prompts on the way in, finished samples on the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.data import Row
from rl_core.contracts.reward import Sample
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.errors import DataError


def encode_prompt(row: Row, *, tokenizer: Tokenizer, max_length: int, max_new_tokens: int) -> np.ndarray:
    """int32 [P]: a row's prompt, checked to leave room for a completion."""
    where = row.get("__where__", "a data row")
    if "prompt" not in row:
        raise DataError(
            f"{where}: there is no 'prompt' column (columns: {', '.join(k for k in row if not k.startswith('__'))})\n"
            "    map one in the data section, e.g. prompt: question"
        )
    tokens = tokenizer.encode_prompt(row["prompt"])
    if not len(tokens):
        raise DataError(f"{where}: the prompt is empty")
    if len(tokens) + max_new_tokens > max_length:
        raise DataError(
            f"{where}: the prompt has {len(tokens)} tokens; with generator.max_new_tokens {max_new_tokens} that is "
            f"more than model.max_length {max_length}\n    raise model.max_length, lower generator.max_new_tokens, "
            "or drop the row"
        )
    return tokens


def to_samples(batch: SequenceBatch, rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample]:
    """Decode generated sequences; ``rows[request]`` is each one's data row."""
    samples = []
    prompts: dict[int, str] = {}  # a group shares its prompt, which is decoded once
    for i in range(len(batch)):
        tokens = batch.tokens[batch.sequence(i)]
        cut = int(batch.sequence_columns["prompt_length"][i])
        request = int(batch.sequence_columns["request"][i])
        if request not in prompts:
            prompts[request] = tokenizer.decode(tokens[:cut])
        samples.append(
            Sample(
                row=rows[request],
                prompt=prompts[request],
                completion=tokenizer.decode(tokens[cut:]),
                completion_tokens=len(tokens) - cut,
                truncated=bool(batch.sequence_columns["truncated"][i]),
            )
        )
    return samples


def sample_rows(samples: Sequence[Sample], rewards: np.ndarray) -> list[dict[str, Any]]:
    """Samples as plain rows for loggers."""
    return [
        {"prompt": s.prompt, "completion": s.completion, "answer": s.row.get("answer"), "reward": float(r)}
        for s, r in zip(samples, rewards, strict=False)
    ]
