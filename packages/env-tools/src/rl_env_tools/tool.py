"""A Python function as a tool: its JSON schema, and calling it with what a model wrote."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, ValidationError, create_model
from rl_core.errors import ConfigError

_ARGUMENT = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.+)$")
_HEADING = re.compile(r"^[A-Z]\w*:$")


@dataclass(frozen=True)
class Description:
    """A tool as seen from outside its process.

    Attributes:
        schema: ``{"type": "function", "function": {…}}``.
        parameters: names, in order.
        takes_only_text: its only parameter is a ``str``.
        asynchronous: it is a coroutine function.
    """

    name: str
    schema: dict[str, Any]
    parameters: tuple[str, ...]
    takes_only_text: bool
    asynchronous: bool


class Tool:
    """A function with its name, description and parameters, taken from signature, type hints and docstring.

    Args:
        function: positional-only parameters, ``*args`` and ``**kwargs`` are refused. Parameters without a type hint
            take anything.
        reference: where it comes from, for messages.

    Raises:
        ConfigError: its parameters cannot be described to a model.
    """

    def __init__(self, function: Callable[..., Any], *, reference: str) -> None:
        self.name = function.__name__
        self._function = function
        self._arguments = _arguments_model(function, reference)

    @property
    def description(self) -> Description:
        """Its description for the environment."""
        return Description(
            name=self.name,
            schema=self.schema,
            parameters=self.parameters,
            takes_only_text=self.takes_only_text,
            asynchronous=inspect.iscoroutinefunction(self._function),
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(self._arguments.model_fields)

    @property
    def takes_only_text(self) -> bool:
        """Whether its only parameter is a ``str``."""
        fields = list(self._arguments.model_fields.values())
        return len(fields) == 1 and fields[0].annotation is str

    @property
    def schema(self) -> dict[str, Any]:
        """``{"type": "function", "function": {"name", "description", "parameters"}}``, as chat templates expect it."""
        parameters = self._arguments.model_json_schema()
        parameters.pop("title", None)
        parameters.pop("additionalProperties", None)
        for described in parameters.get("properties", {}).values():
            described.pop("title", None)
        description = inspect.getdoc(self._function) or ""
        summary = " ".join(description.partition("\n\n")[0].split())
        return {
            "type": "function",
            "function": {"name": self.name, "description": summary, "parameters": parameters},
        }

    def call(self, arguments: Mapping[str, Any]) -> str | Awaitable[str]:
        """The function's result as text; ``error: …`` if it raises or the arguments do not fit."""
        try:
            checked = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            return f"error: {self.name}: {_first_problem(error)}"
        given = {name: getattr(checked, name) for name in self.parameters}
        try:
            result = self._function(**given)
        except Exception as error:  # noqa: BLE001 - the model is told, and may do better
            return failure(error)
        return _text_of(result) if inspect.isawaitable(result) else as_text(result)


def as_text(result: Any) -> str:
    """Text as it is, anything else as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def failure(error: Exception) -> str:
    """The text of an exception for the model."""
    text = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {text}" if text else f"error: {type(error).__name__}"


async def _text_of(result: Awaitable[Any]) -> str:
    try:
        return as_text(await result)
    except Exception as error:  # noqa: BLE001 - the model is told, and may do better
        return failure(error)


def _arguments_model(function: Callable[..., Any], reference: str) -> type[BaseModel]:
    """A pydantic model with a field per parameter."""
    hints = get_type_hints(function)
    described = _argument_descriptions(inspect.getdoc(function) or "")
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {reference}: a tool's parameters have names, and {parameter} has none of its own")
        if name.startswith("_"):
            raise ConfigError(f"tool {reference}: the parameter {name!r} must not begin with an underscore")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), Field(default, description=described.get(name)))
    try:
        return create_model(function.__name__, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    except PydanticSchemaGenerationError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"tool {reference}: a type of its parameters cannot be written in JSON: {reason}\n"
            "    use str, int, float, bool, Literal, lists and dicts of them"
        ) from error


def _argument_descriptions(docstring: str) -> dict[str, str]:
    """Parameter → its line in the section ``Args:`` of a Google-style docstring."""
    found: dict[str, str] = {}
    inside = False
    for line in docstring.splitlines():
        if _HEADING.match(line.strip()):
            inside = line.strip() in ("Args:", "Arguments:")
        elif inside and (match := _ARGUMENT.match(line)):
            found[match[1]] = match[2].strip()
    return found


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
