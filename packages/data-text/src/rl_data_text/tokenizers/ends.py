"""Tokens that end a completion, and tokens that are never sampled.

A tokenizer names one end-of-sequence token; chat models have further ones. They stand in the model folder's
``generation_config.json`` (or in ``config.json``), and in the chat template, whose assistant turns may end with
another token than the tokenizer's (Gemma ``<end_of_turn>``, Llama 3 ``<|eot_id|>``, Phi ``<|end|>``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rl_core.errors import DataError
from rl_huggingface.foreign import read_json

FILLER = "<unused_{}>"
"""The name of a vocabulary entry that is only there to fill up a built tokenizer."""

_FILLER = re.compile(r"<unused_\d+>")


def end_token_ids(tokenizer: Any, folder: str | None, *, closing: str, size: int) -> tuple[int, ...]:
    """The tokens that end a completion, each once: the tokenizer's own first, then the model's, then the template's.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        folder: the model folder or hub id, for the ends that its configs list.
        closing: what the chat template ends an assistant's message with; counts where it is a special token.
        size: ids from here on belong to no token and are left out.

    Raises:
        DataError: a config of the folder lists something other than token ids.
        EnvironmentProblem: one cannot be read.
    """
    found = [int(tokenizer.eos_token_id)]
    if folder is not None:
        found += _configured(folder, _special_ids(tokenizer))
    turn_end = tokenizer.convert_tokens_to_ids(closing.strip()) if closing else None
    found += [turn_end] if turn_end in _special_ids(tokenizer) else []
    return tuple(dict.fromkeys(token for token in found if 0 <= token < size))


def never_sampled(tokenizer: Any, ends: Sequence[int], *, size: int) -> tuple[int, ...]:
    """Ids below ``size`` that mean nothing in a text: padding, the unknown token, fillers, ids without a token."""
    vocabulary = tokenizer.get_vocab()
    special = _special_ids(tokenizer)
    found = {i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id) if i in special}
    found |= {i for token, i in vocabulary.items() if _FILLER.fullmatch(token) and i not in special}
    if len(vocabulary) < size:
        found |= set(range(size)) - set(vocabulary.values())
    return tuple(sorted(found - {*ends, tokenizer.bos_token_id}))


def without_ends(tokens: Iterable[int], ends: Sequence[int], meaningless: frozenset[int], bos: int | None) -> list[int]:
    """``tokens`` that are text: no opening token, nothing ``meaningless``, and not the ends at the end."""
    ids = [token for token in tokens if token not in meaningless]
    while ids and ids[-1] in ends:
        ids.pop()
    return ids[1:] if ids and ids[0] == bos else ids


def _special_ids(tokenizer: Any) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)


def _configured(folder: str, special: set[int]) -> list[int]:
    """``eos_token_id`` of the folder's configs: what ``generate`` of transformers stops at."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        fields = _read(folder, name)
        for part in (fields, fields.get("text_config")):
            value = part.get("eos_token_id") if isinstance(part, dict) else None
            if value is None:
                continue
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise DataError(
                    f"{os.path.join(folder, name)}: eos_token_id is {value!r}, not a token id or a list of them"
                )
            # A config class's default number (2, say) is an ordinary token of another tokenizer.
            found += [i for i in ids if name == "generation_config.json" or isinstance(value, list) or i in special]
    return found


def _read(folder: str, name: str) -> dict[str, Any]:
    """A JSON file of a model folder or hub id; empty where there is none. Raises EnvironmentProblem for a bad one."""
    path: str | None = os.path.join(folder, name)
    if not os.path.isdir(folder):
        from transformers.utils import cached_file

        try:
            path = cached_file(folder, name)
        except OSError:  # the model has no such file, or it is not in the cache of a machine without a network
            return {}
    if path is None or not os.path.lexists(path):
        return {}
    fields = read_json(path)
    return fields if isinstance(fields, dict) else {}
