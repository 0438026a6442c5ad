"""Rules for fields that have no effect because of other fields: setting such a field is an error.

A value that comes from the preset is never objected to, so that any field can be overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationInfo
from rl_core.config.sections import Section


@dataclass(frozen=True)
class Rule:
    """Fields that matter only in some configs of one section.

    Attributes:
        fields: their keys; those of a section below as ``kl.estimator``.
        applies: whether they matter in a config (an instance of the section).
        reason: why not, otherwise: completes "… has no effect"; ``{c}`` stands for the config.
        remedy: what to do about it; ``{key}`` stands for the field.
    """

    fields: tuple[str, ...]
    applies: Callable[[Any], bool]
    reason: str
    remedy: str = "remove {key}"

    def message(self, key: str, config: Any) -> str:
        return f"{key} has no effect {self.reason.format(c=config)}; {self.remedy.format(key=key)}"


def without_effect(
    section: Section, rules: Iterable[Rule], *, preset: Mapping[str, Any] | None = None, prefix: str = ""
) -> list[str]:
    """One message per field that was given and does nothing, in the order of ``rules``.

    Args:
        preset: the values that the preset has for this section; given like that they are not objected to.
        prefix: stands before the fields in messages: ``mismatch.``.
    """
    preset = preset or {}
    given = {key for key, value in _given(section) if value is not None and value != _at(preset, key)}
    return [
        rule.message(prefix + field, section)
        for rule in rules
        for field in rule.fields
        if field in given and not rule.applies(section)
    ]


def field_without_effect(info: ValidationInfo, rules: Iterable[Rule]) -> list[str]:
    """The messages about one field, for its validator, so that the error points at it.

    The field was given; what its rules ask for are fields above it, all of which are valid.
    """
    config = SimpleNamespace(**info.data)
    field = str(info.field_name)
    return [rule.message(field, config) for rule in rules if field in rule.fields and not rule.applies(config)]


def refuse(messages: Iterable[str]) -> None:
    """One ``ValueError`` with all ``messages``, if there are any."""
    if text := "\n    ".join(messages):
        raise ValueError(text)


def _given(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of the fields that were set, nested ones as ``kl.estimator``."""
    for name, info in type(section).model_fields.items():
        if name in section.model_fields_set:
            key, value = f"{prefix}{info.alias or name}", getattr(section, name)
            if isinstance(value, Section):
                yield from _given(value, f"{key}.")
            else:
                yield key, value


def _at(preset: Mapping[str, Any], key: str) -> Any:
    value: Any = preset
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
