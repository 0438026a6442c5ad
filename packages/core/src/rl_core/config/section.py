"""The base of every config model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every config model: frozen, and unknown keys are errors.

    A model may define ``problems(self, stage) -> Iterable[Problem]`` for checks that look at other sections
    (a :class:`rl_core.config.stage.StageConfig`); paths in the problems are relative to its own section.
    Defaults are validated too, so that a relative default path becomes absolute like a given one.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
