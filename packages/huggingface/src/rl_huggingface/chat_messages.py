"""Chat messages: keys that say what is trained on, nulls that stand for no key, contents that are lists of parts.

For plugins that read or render conversations: data sources, tokenizers, reward models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rl_core.errors import DataError

TRAINED_KEYS = ("weight", "train", "training", "trainable", "loss", "loss_mask")
"""True or 1: the assistant's message is trained on. (OpenAI and axolotl, axolotl, ms-swift, this project's batches.)"""

MASKED_KEYS = ("masked",)
"""True or 1: it is not (torchtune)."""

OWN_KEYS = frozenset({"role", "content", "tool_call_id", *TRAINED_KEYS, *MASKED_KEYS})
"""Keys that mean something without a template that reads them; an id only links a result to its call."""


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether an assistant's message is to be trained on: yes, unless one of its keys says no.

    Raises:
        DataError: a value other than true, false, 1 and 0, or two keys that contradict each other.
    """
    said = {}
    for key in (*TRAINED_KEYS, *MASKED_KEYS):
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"a message has {key} {value!r}; it is trained on or not: true, false, 1 or 0\n"
                "    to weigh a row more than others, repeat it"
            )
        said[key] = bool(value) != (key in MASKED_KEYS)
    if len(set(said.values())) > 1:
        raise DataError(f"a message's {' and '.join(said)} contradict each other\n    remove all but one of them")
    return all(said.values())


def continues(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a prompt's last message is one that the model continues with: the assistant's, with a text."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    return last.get("role") == "assistant" and isinstance(content, str) and bool(content) and not last.get("tool_calls")


def leading_token(text: str, added: Collection[str]) -> str:
    """The added token of a tokenizer that ``text`` begins with, and the white space before it; else empty.

    What a chat template puts after an assistant's text begins with the token that ends the turn.
    """
    stripped = text.lstrip()
    token = max((one for one in added if stripped.startswith(one)), key=len, default="")
    return text[: len(text) - len(stripped)] + token if token else ""


def joined_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """``message`` with its text parts (``{"type": "text", "text": …}``), one behind the other, as one text.

    That is what templates make of them that read parts. Other contents stay as they are.
    """
    content = message.get("content")
    if not isinstance(content, list | tuple) or not content or not all(map(_is_text_part, content)):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def cleaned(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without the keys that are null, in tool calls as well. A null ``content`` stays: templates ask for it.

    What is inside a call's ``arguments`` is the row's own and stays.

    Raises:
        DataError: there are no messages, or one has a content that is no text.
    """
    found = [_cleaned(message) for message in messages]
    if not found:
        raise DataError("the list of messages is empty")
    for index, message in enumerate(found):
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise DataError(
                f"the content of message {index} ({message.get('role')}) is {type(content).__name__}, not text\n"
                '    give a string, or a list of parts like {"type": "text", "text": …}'
            )
    return found


def _cleaned(message: Mapping[str, Any]) -> dict[str, Any]:
    message = joined_parts(message)
    kept = {key: value for key, value in message.items() if value is not None or key == "content"}
    calls = kept.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        kept["tool_calls"] = [_without_nulls(call, depth=2) for call in calls]
        if not calls:
            del kept["tool_calls"]
    return kept


def _without_nulls(value: Any, depth: int) -> Any:
    if not isinstance(value, Mapping) or not depth:
        return value
    return {key: _without_nulls(item, depth - 1) for key, item in value.items() if item is not None}
