"""Running a stage's evaluators: before the first step, every so often, and after the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.evaluator import EvaluationContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample
from rl_core.errors import RLError

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice, StageConfig
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.data import Row
    from rl_core.contracts.evaluator import EvaluationResult, Evaluator
    from rl_core.contracts.rollout import RolloutSource
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.model import Model
    from rl_core.training.driver import DriverParts


@dataclass(frozen=True)
class Evaluations:
    """The evaluators of a stage, and what they may ask for.

    Attributes:
        evaluators: each with its section.
        rows: the evaluation data.
        models: all roles.
        rollouts: what completes and scores; None where nothing does.
        generates, scores: whether the stage has a generator, and rewards.
        seed: of the run.
        last: the last step of the stage.
    """

    evaluators: Sequence[tuple[ComponentChoice, Evaluator]]
    rows: Sequence[Row]
    tokenizer: Tokenizer
    algorithm: Algorithm
    rollouts: RolloutSource | None
    generates: bool
    scores: bool
    models: Mapping[str, Model]
    seed: int
    last: int

    def due(self, step: int) -> bool:
        """Whether any evaluator runs after ``step`` (0: before training)."""
        return bool(self._due(step))

    def run(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """``(metrics, samples)`` of the evaluators that run after ``step``.

        Raises:
            RLError: an evaluator raised; the message names it and its package.
        """
        counts: Counter[str] = Counter()
        context = self.context(step, counts=counts)
        metrics: dict[str, float] = {}
        samples: list[dict[str, Any]] = []
        for choice, evaluator in self._due(step):
            result = _result(choice, evaluator, context)
            twice = sorted(set(metrics) & set(result.metrics))
            if twice:
                raise RLError(
                    f"evaluator {choice.name!r} ({choice.package}) measures {twice[0]!r}, which an evaluator before it "
                    "measured already\n    remove one of them from evaluators"
                )
            metrics |= result.metrics
            samples.extend({**row, "evaluator": choice.name} for row in result.samples)
        return metrics | {f"eval/{name}": float(count) for name, count in counts.items()}, samples

    def context(self, step: int, *, counts: Counter[str]) -> EvaluationContext:
        """What evaluators are given; failures of rewards are added to ``counts``."""
        rollouts = self.rollouts

        def generate(prompts: Sequence[np.ndarray], sampling: SamplingParams, seed: int) -> SequenceBatch:
            assert rollouts is not None
            return rollouts.generate(prompts, sampling, seed=seed, step=step)

        def complete(rows: Sequence[Row], sampling: SamplingParams, seed: int) -> tuple[SequenceBatch, list[Sample]]:
            assert rollouts is not None
            return rollouts.complete(rows, sampling, seed=seed, step=step)

        def score(samples: Sequence[Sample]) -> np.ndarray:
            assert rollouts is not None
            rewards, failures = rollouts.score(samples)
            counts.update(failures)
            return rewards

        return EvaluationContext(
            step=step,
            seed=self.seed,
            rows=self.rows,
            tokenizer=self.tokenizer,
            algorithm=self.algorithm,
            models=self.models,
            generate=generate if self.generates else None,
            score=score if self.scores else None,
            complete=complete if self.generates else None,
        )

    def _due(self, step: int) -> list[tuple[ComponentChoice, Evaluator]]:
        def due(every: int | None) -> bool:
            return step in (0, self.last) or (every is not None and step % every == 0)

        return [(choice, evaluator) for choice, evaluator in self.evaluators if due(choice.config.every)]


def evaluations_of(stage: StageConfig, driver: DriverParts, *, models: Mapping[str, Model]) -> Evaluations:
    """The evaluations that a stage's config asks for."""
    return Evaluations(
        evaluators=driver.evaluators,
        rows=driver.eval_rows,
        tokenizer=driver.tokenizer,
        algorithm=driver.algorithm,
        rollouts=driver.rollouts,
        generates=stage.generator is not None,
        scores=bool(stage.rewards or stage.environment),
        models=models,
        seed=stage.run.seed,
        last=stage.run.steps,
    )


def _result(choice: ComponentChoice, evaluator: Evaluator, context: EvaluationContext) -> EvaluationResult:
    try:
        return evaluator.evaluate(context)
    except RLError:
        raise
    except Exception as error:
        raise RLError(f"evaluator {choice.name!r} ({choice.package}) raised {type(error).__name__}: {error}") from error
