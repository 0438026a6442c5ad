"""Prompts: each row's as tokens, with room for a completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.data.encodings import EncodedRows
from rl_core.errors import DataError
from rl_core.long_rows import LongRows, OnLong
from rl_huggingface.chat_options import taken, template_options


class Prompts(EncodedRows):
    """The prompt tokens of each row (int32 [P]); none for a row that is left out.

    Args:
        max_length: tokens of the longest sequence that the model takes.
        max_new_tokens: most that a completion (or the first turn) has.
        on_long: what becomes of a prompt that leaves no room for it: ``truncate`` cuts off its beginning.
        options: further arguments of :func:`encode_prompt`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        tokenizer: Tokenizer,
        max_length: int,
        max_new_tokens: int,
        on_long: OnLong = "skip",
        section: str = "data",
        limit_name: str = "generator.max_new_tokens",
        **options: Any,
    ) -> None:
        super().__init__(rows)
        limit = (
            f"{max_length - max_new_tokens} tokens (model.max_length {max_length} less {limit_name} {max_new_tokens})"
        )
        self.long = LongRows(
            on_long,
            what="prompts" if section == "data" else f"prompts of {section}",
            limit=limit,
            fix=f"raise model.max_length, lower {limit_name}, or set algorithm.on_long_prompt to skip or truncate",
        )
        self._arguments: Mapping[str, Any] = {
            "tokenizer": tokenizer,
            "max_length": max_length,
            "max_new_tokens": max_new_tokens,
            "section": section,
            "limit_name": limit_name,
            "long": self.long,
            **options,
        }

    def encode(self, index: int) -> np.ndarray:
        """int32 [P]: the prompt of row ``index``; empty where it is left out."""
        return encode_prompt(self._placed(index), **self._arguments)


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
