"""Finding tool calls in what the model wrote."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_HERMES = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A call the model made.

    Attributes:
        tool: the tool's name; empty where it cannot be told.
        arguments: by parameter name.
        error: why the call cannot be understood; empty where it can.
    """

    tool: str
    arguments: Mapping[str, Any]
    error: str = ""


def hermes_calls(text: str) -> list[Call]:
    """Calls written ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, in order."""
    return [_hermes_call(match[1].strip(), closed=bool(match[2])) for match in _HERMES.finditer(text)]


def _hermes_call(body: str, *, closed: bool) -> Call:
    if not closed:
        return Call("", {}, "the tool call is not closed with </tool_call>")
    try:
        given = json.loads(body)
    except ValueError as error:
        return Call("", {}, f"the tool call is no JSON: {error}")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        return Call("", {}, 'a tool call is {"name": …, "arguments": {…}}')
    arguments = given.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as JSON in a string
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        return Call(given["name"], {}, '"arguments" must be an object with one entry per parameter')
    return Call(given["name"], arguments)


def bracket_calls(text: str, parameters: Mapping[str, tuple[str, ...]], *, raw: frozenset[str]) -> list[Call]:
    """Calls written ``[name(arguments)]``, in order; a bracket with any other name is text.

    Args:
        parameters: tool → its parameters, in order.
        raw: tools whose only parameter is text: theirs is written without quotes, ``[calculator(1+2)]``. Other
            arguments are Python literals, by position or by name, ``[search("tea", limit=3)]``.
    """
    if not parameters:
        return []
    names = "|".join(re.escape(name) for name in parameters)
    found = re.finditer(rf"\[({names})\((.*?)\)\]", text, re.DOTALL)
    return [_bracket_call(match[1], match[2], parameters[match[1]], raw=match[1] in raw) for match in found]


def _bracket_call(tool: str, text: str, parameters: tuple[str, ...], *, raw: bool) -> Call:
    if raw:
        return Call(tool, {parameters[0]: text})
    try:
        call = ast.parse(f"call({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Call(tool, {}, f"the arguments {text!r} are no Python values separated by commas")
    if None in named or len(positional) > len(parameters):
        return Call(tool, {}, f"{tool} takes {len(parameters)} arguments: {', '.join(parameters)}")
    return Call(tool, {**dict(zip(parameters, positional, strict=False)), **{str(k): v for k, v in named.items()}})
