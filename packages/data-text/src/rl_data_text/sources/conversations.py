"""Conversations as files have them: nulls of Arrow, ShareGPT's names, and what else the chat template gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_core.errors import DataError
from rl_huggingface.chat_messages import joined_parts
from rl_huggingface.chat_options import TEMPLATE_KWARGS, TOOLS, row_template_kwargs, row_tools

from rl_data_text.sources.columns import BadRow

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool"}


def without_nulls(value: Any) -> Any:
    """``value`` without the keys that are null, at every depth.

    A message's ``content`` stays, because templates ask whether it is none; so do the items of a list, because there
    null is a value. An object of nothing but nulls becomes an empty one.
    """
    if isinstance(value, Mapping):
        return {
            key: without_nulls(item)
            for key, item in value.items()
            if item is not None or (key == "content" and "role" in value)
        }
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def plain_messages(value: Any) -> Any:
    """Messages of the form ``{"from": "human", "value": …}`` as ``{"role": "user", "content": …}``, parts as one text.

    They keep their other keys, and anything else stays as it is.
    """
    if not isinstance(value, list | tuple):
        return value
    with_roles = [_with_role(one) if _is_share_gpt(one) else one for one in value]
    return [joined_parts(one) if isinstance(one, Mapping) else one for one in with_roles]


def chat_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """``tools`` and ``chat_template_kwargs`` of a row with messages, parsed; only those that it has.

    Raises:
        BadRow: one of them is not of its form.
    """
    if not any(isinstance(row.get(key), list | tuple) for key in ("prompt", "messages", "completion")):
        return {}
    try:
        found = {TOOLS: row_tools(row), TEMPLATE_KWARGS: row_template_kwargs(row)}
    except DataError as error:
        raise BadRow(str(error)) from None
    return {key: value for key, value in found.items() if row.get(key) is not None}


def _is_share_gpt(message: Any) -> bool:
    return isinstance(message, Mapping) and "from" in message and "value" in message and "role" not in message


def _with_role(message: Mapping[str, Any]) -> dict[str, Any]:
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": _ROLES.get(str(message["from"]), message["from"]), "content": message["value"], **others}
