"""The rule that a config refuses a value of the wrong type by naming the field, and never crashes on one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from rl_core.discovery.status import describe

PROBES: tuple[Any, ...] = (None, True, -1, 0.5, "?", [], [None], {"?": None})
"""One value of each type that YAML has, chosen so that hardly any field means something by it."""


def check_bad_values(label: str, model: type[BaseModel], name: str, fields: Mapping[str, Any]) -> None:
    """Put each of :data:`PROBES` into each field: it is accepted, or refused with pydantic's error.

    A field that is not ``Any`` must refuse at least one of them, and say that the value of this field is wrong.

    Args:
        label: the component, for messages.
        model: its config model.
        name: the component's name.
        fields: valid values of the other fields.
    """
    for field, about in model.model_fields.items():
        key = about.alias or field
        refusals = [refusal for probe in PROBES if (refusal := _refusal(label, model, name, fields, key, probe))]
        named = any(place[:1] == (key,) for refusal in refusals for place in refusal)
        if about.annotation is not Any and not named:
            raise AssertionError(
                f"{label}: {model.__name__}.{field} accepts a value of any type, so a mistake in the YAML would only "
                "show later; give it a type, or let its validator raise ValueError"
            )


def _refusal(
    label: str, model: type[BaseModel], name: str, fields: Mapping[str, Any], field: str, probe: Any
) -> list[tuple[Any, ...]]:
    """The places that pydantic blames; empty where the value is accepted."""
    try:
        model(**{"name": name, **fields, field: probe})
    except ValidationError as error:
        return [one["loc"] for one in error.errors()]
    except Exception as error:
        raise AssertionError(
            f"{label}: {field}: {probe!r} makes {model.__name__} crash instead of being refused: {describe(error)}; "
            "validators raise ValueError, which names the field and its line to the user"
        ) from error
    return []
