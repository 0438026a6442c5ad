"""Columns of a row for the chat template, in addition to its messages: ``tools`` and ``chat_template_kwargs``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_core.errors import DataError

TOOLS, TEMPLATE_KWARGS = "tools", "chat_template_kwargs"


def row_tools(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON schemas in the row's column ``tools``: a list of objects or of JSON texts, or one JSON text.

    Raises:
        DataError: anything else.
    """
    value = _parsed(row.get(TOOLS), TOOLS)
    if value is None:
        return []
    tools = []
    for index, one in enumerate(value if isinstance(value, list | tuple) else [None]):
        tool = _parsed(one, f"{TOOLS}[{index}]")
        if not isinstance(tool, Mapping):
            raise DataError(
                f"{TOOLS!r} must be a list of JSON schemas (objects), or the JSON text of one\n"
                "    where the column is something else, rename it in the file"
            )
        tools.append(dict(tool))
    return tools


def row_template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """The variables for the chat template in the row's column ``chat_template_kwargs``: an object or its JSON text.

    Raises:
        DataError: anything else.
    """
    value = _parsed(row.get(TEMPLATE_KWARGS), TEMPLATE_KWARGS)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{TEMPLATE_KWARGS!r} must be an object with the template's variables, or its JSON text")
    return dict(value)


def template_options(row: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Keyword arguments for ``Tokenizer.encode_prompt`` and ``encode_reply``; only those that there are.

    The tools are the environment's (``tools``), then the row's: all of them can be called. Where both have a function
    of the same name, the environment's schema stands, because it is the environment that runs it.

    Raises:
        DataError: the row's columns are not of their form.
    """
    if isinstance(row.get("prompt"), str):  # text has no template
        return {}
    known = {_name(tool) for tool in tools}
    offered = [*tools, *(tool for tool in row_tools(row) if _name(tool) not in known)]
    kwargs = row_template_kwargs(row)
    return ({"tools": offered} if offered else {}) | ({"template_kwargs": kwargs} if kwargs else {})


def taken(method: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those ``options`` that ``method`` takes: tokenizers may have been written before there were any."""
    if not options:
        return {}
    parameters = inspect.signature(method).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return dict(options)
    names = {one.name for one in parameters}
    return {name: value for name, value in options.items() if name in names}


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name!r} is text that is not JSON: {error}") from None


def _name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None
