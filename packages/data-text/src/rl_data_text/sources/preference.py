"""Preference data: the forms pairs and labels come in, brought to one.

Whatever the file's form, a pair leaves here as ``prompt`` (text or chat messages) with ``chosen`` and ``rejected``
(texts, or the one message of the answer), and a KTO label as a bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rl_data_text.sources.checks import check_messages
from rl_data_text.sources.columns import BadRow, kind_of, missing_column
from rl_data_text.sources.transcripts import as_messages, looks_like_transcript, split_transcripts

Format = Literal["columns", "hh", "hh_messages"]


def normalize_pair(row: Mapping[str, Any], form: Format) -> dict[str, Any]:
    """The columns of ``row`` that the pair changes: ``prompt``, ``chosen``, ``rejected``, or none of them.

    Raises:
        BadRow: the pair states no preference, or is not of this form.
    """
    if form != "columns":
        return _from_transcripts(row, form)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        return {}
    if _is_list(chosen) != _is_list(rejected):
        raise BadRow(
            f"'chosen' is {kind_of(chosen)} and 'rejected' is {kind_of(rejected)}; "
            "both must be text, or both lists of messages"
        )
    if _is_list(chosen):
        return _from_conversations(row.get("prompt"), chosen, rejected)
    if row.get("prompt") is None and looks_like_transcript(chosen):
        raise BadRow("no 'prompt', and 'chosen' is a whole transcript; set format: hh (or hh_messages) to split it")
    if chosen == rejected:
        raise BadRow("'chosen' and 'rejected' are the same")
    return {}


def normalize_label(value: Any) -> bool:
    """A KTO label: true, false, 1 or 0.

    Raises:
        BadRow: anything else.
    """
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    shown = repr(value) if isinstance(value, str | int | float) else kind_of(value)
    raise BadRow(
        f"'label' is {shown}, not true or false (1 or 0); "
        "where it is no KTO label, name the completion's column (completion: completion) and it is left alone"
    )


def _from_transcripts(row: Mapping[str, Any], form: Format) -> dict[str, Any]:
    for key in ("chosen", "rejected"):
        if key not in row:
            raise BadRow(missing_column(row, key, key))
    prompt, chosen, rejected = split_transcripts(row["chosen"], row["rejected"])
    if form == "hh":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": as_messages(prompt)} | {
        key: [{"role": "assistant", "content": text.strip()}] for key, text in answers.items()
    }


def _from_conversations(prompt: Any, chosen: Sequence[Any], rejected: Sequence[Any]) -> dict[str, Any]:
    """Conversations that share all but their last message, or just the last messages next to a prompt."""
    check_messages("chosen", chosen)
    check_messages("rejected", rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise BadRow("'chosen' and 'rejected' are the same")
    if not shared == len(chosen) - 1 == len(rejected) - 1:
        raise BadRow(
            f"'chosen' ({len(chosen)} messages) and 'rejected' ({len(rejected)}) must share all but their last "
            f"message, but they share the first {shared}"
        )
    answers = {"chosen": _answer("chosen", chosen), "rejected": _answer("rejected", rejected)}
    return {"prompt": _full_prompt(prompt, list(chosen[:-1])), **answers}


def _answer(key: str, conversation: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last message, with all its keys: reasoning and tool calls are part of an answer."""
    last = conversation[-1]
    if last["role"] != "assistant":
        raise BadRow(f"the last message of {key!r} is the {last['role']}'s, not the assistant's")
    if not last.get("content") and not last.get("tool_calls"):
        raise BadRow(f"the last message of {key!r} is empty")
    return [last]


def _full_prompt(prompt: Any, before: list[Any]) -> list[Any]:
    """The messages before the answer: those of the conversations, led by the prompt where they lack it."""
    if prompt == "":
        raise BadRow("'prompt' is empty")
    if isinstance(prompt, str):
        asked = any(message["role"] == "user" for message in before)
        return before if asked else [{"role": "user", "content": prompt}, *before]
    if _is_list(prompt):
        given = list(prompt)
        return before if before[: len(given)] == given else [*given, *before]
    if prompt is not None:
        raise BadRow(f"'prompt' is {kind_of(prompt)}, not text or a list of messages")
    if not before:
        raise BadRow("no 'prompt', and 'chosen' and 'rejected' hold only the answer")
    return before


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
