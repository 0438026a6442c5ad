"""Config models of the evaluators."""

from __future__ import annotations

from pydantic import Field, model_validator
from rl_core.config.sampling import StopStrings, Temperature
from rl_core.config.sections import EvaluatorConfig

_LIMIT = "Use only this many rows of eval_data, from the start; default: all."


class LossConfig(EvaluatorConfig):
    """Held-out loss."""

    limit: int | None = Field(None, ge=1, description=_LIMIT)


class AccuracyConfig(EvaluatorConfig):
    """Held-out accuracy of sampled completions."""

    limit: int | None = Field(None, ge=1, description=_LIMIT)
    n: int = Field(1, ge=1, description="Completions per prompt; more than 1 needs a temperature above 0.")
    temperature: Temperature = Field(0.0, ge=0, description="Sampling temperature; 0 takes the most likely token.")
    max_new_tokens: int = Field(64, ge=1, description="Upper bound on completion tokens, end token included.")
    stop: StopStrings = Field((), description="Strings that end a completion (kept in it).")
    threshold: float = Field(1.0, description="A completion whose reward is at least this counts as correct.")
    samples: int = Field(10, ge=0, description="Completions shown in the samples, of the first rows.")

    @model_validator(mode="after")
    def _several_completions_differ(self) -> AccuracyConfig:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n: {self.n} completions at temperature 0 would all be the same; set temperature: 1.0")
        return self
