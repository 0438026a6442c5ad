"""Checks that a mapped row holds what an algorithm can use; each raises :class:`BadRow` with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl_core.errors import DataError
from rl_huggingface.chat_messages import is_trained

from rl_data_text.sources.columns import BadRow, kind_of, missing_column

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles a chat message may have."""


def check_row(row: Mapping[str, Any]) -> None:
    """Check the canonical columns of a row; other columns may hold anything."""
    if row.get("prompt") is None and row.get("messages") is None:
        columns = {k: v for k, v in row.items() if not k.startswith("__")}
        raise BadRow(f"no 'prompt' and no 'messages' (columns: {', '.join(columns) or 'none'})")
    if row.get("prompt") is not None:
        check_text("prompt", row["prompt"])
    for key in ("completion", "chosen", "rejected"):
        if key in row:
            check_text(key, row[key])
    if row.get("messages") is not None:
        check_messages("messages", row["messages"])


def check_text(key: str, value: Any) -> None:
    """A non-empty string, or a list of chat messages."""
    if isinstance(value, str):
        if not value:
            raise BadRow(f"{key!r} is empty")
        _check_unicode(key, value)
    elif isinstance(value, list | tuple):
        check_messages(key, value)
    else:
        raise BadRow(f"{key!r} is {kind_of(value)}, not a string or a list of messages")


def check_messages(key: str, messages: Any) -> None:
    """A non-empty list of ``{"role", "content"}`` with known roles and text contents."""
    if not isinstance(messages, list | tuple):
        raise BadRow(f"{key!r} is {kind_of(messages)}, not a list of messages")
    if not messages:
        raise BadRow(f"{key!r} is empty")
    for index, message in enumerate(messages):
        place = f"{key}[{index}]"
        if not isinstance(message, Mapping):
            raise BadRow(f"{place} is {kind_of(message)}, not an object with 'role' and 'content'")
        for part in ("role", "content"):
            if part not in message and not (part == "content" and message.get("tool_calls")):
                raise BadRow(f"{place}: {missing_column(message, part, 'message')}")
        if message["role"] not in ROLES:
            raise BadRow(f"{place} has role {message['role']!r}; roles are {', '.join(ROLES)}")
        try:
            is_trained(message)
        except DataError as error:
            raise BadRow(f"{place}: {error}") from None
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if isinstance(content, list | tuple) and content:
            raise BadRow(f"{place}.content has parts other than text: {_kinds_of(content)}; only text can be read")
        if not isinstance(content, str):
            raise BadRow(f"{place}.content is {kind_of(content)}, not a string")
        _check_unicode(f"{place}.content", content)


def _kinds_of(parts: Sequence[Any]) -> str:
    kinds = [part.get("type") if isinstance(part, Mapping) else kind_of(part) for part in parts]
    return ", ".join(dict.fromkeys(str(kind) for kind in kinds if kind != "text")) or "a text that is no string"


def _check_unicode(key: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(
            f"{key!r} holds half of a surrogate pair (\\u{ord(text[error.start]):04x} at character {error.start})"
        ) from None
