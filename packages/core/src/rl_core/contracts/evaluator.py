"""An evaluator: measures the current model on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rl_core.batch import SequenceBatch
from rl_core.contracts.data import Row
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.model_handle import ModelHandle
    from rl_core.contracts.tokenizer import Tokenizer


@dataclass(frozen=True)
class EvaluationContext:
    """Inputs of an evaluator; ``generate``, ``complete`` and ``score`` are None where the config has none.

    Attributes:
        rows: the rows of ``eval_data``.
        generate: ``generate(prompts, sampling, seed) -> SequenceBatch`` through the router, with the
            newest weights; ``prompts`` is a list of int32 token arrays. One turn, whatever the environment.
        complete: ``complete(rows, sampling, seed) -> (SequenceBatch, samples)``: the rows' prompts completed as in
            rollouts, through the environment where there is one; ``samples`` in the batch's order, for ``score``.
        score: ``score(samples) -> float array [len(samples)]``: the weighted sum of the configured rewards; NaN for
            a sample that a failed reward drops (``on_error: drop``), which then is in no mean.
    """

    step: int
    seed: int
    rows: Sequence[Row]
    tokenizer: Tokenizer
    algorithm: Algorithm
    models: Mapping[str, ModelHandle]
    generate: Callable[[Sequence[Any], SamplingParams, int], SequenceBatch] | None = None
    score: Callable[[Sequence[Sample]], Any] | None = None
    complete: Callable[[Sequence[Row], SamplingParams, int], tuple[SequenceBatch, list[Sample]]] | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """Flat metrics (``eval/accuracy``) and a few rows to show (JSON-like; ``prompt``, ``completion``, ``reward``)."""

    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class Evaluator(Protocol):
    """Built as ``factory(config)`` in the driver."""

    def evaluate(self, context: EvaluationContext) -> EvaluationResult:
        """Measure; must not change any model."""
        ...
