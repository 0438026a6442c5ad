"""The base of every config model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from rl_core.config.scalars import exact_scalars


class Section(BaseModel):
    """Base of every config model: frozen, and unknown keys are errors.

    A model may define ``problems(self, stage) -> Iterable[Problem]`` for checks that look at other sections
    (a :class:`rl_core.config.stage.StageConfig`); paths in the problems are relative to its own section.
    Defaults are validated too, so that a relative default path becomes absolute like a given one. Numbers, flags and
    texts are taken for nothing else (:mod:`rl_core.config.scalars`).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
        ser_json_inf_nan="constants",
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def is_other_section(model: Any) -> bool:
            return model is not cls and isinstance(model, type) and issubclass(model, Section)

        return exact_scalars(handler(source), handler, done=is_other_section)
