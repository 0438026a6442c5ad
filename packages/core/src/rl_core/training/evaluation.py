"""Running a stage's evaluators: before the first step, every so often, and after the last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.evaluator import EvaluationContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError, RLError
from rl_core.rollout.cursor import request_seeds
from rl_core.rollout.encodings import Prompts
from rl_core.rollout.samples import to_samples

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice, StageConfig
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.data import Row
    from rl_core.contracts.evaluator import EvaluationResult, Evaluator
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.long_rows import OnLong
    from rl_core.model import Model
    from rl_core.rewards.scoring import WeightedRewards
    from rl_core.training.driver import DriverParts
    from rl_core.training.generation import Generation


@dataclass(frozen=True)
class Evaluations:
    """The evaluators of a stage, and what they may ask for.

    Attributes:
        evaluators: each with its section.
        rows: the evaluation data.
        models: all roles.
        max_length: tokens of the longest sequence that the model takes.
        on_long: what becomes of a prompt that leaves no room for a completion.
        seed: of the run.
        last: the last step of the stage.
    """

    evaluators: Sequence[tuple[ComponentChoice, Evaluator]]
    rows: Sequence[Row]
    tokenizer: Tokenizer
    algorithm: Algorithm
    rewards: WeightedRewards | None
    models: Mapping[str, Model]
    generation: Generation | None
    max_length: int
    on_long: OnLong
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
        generation, rewards = self.generation, self.rewards

        def generate(prompts: Sequence[np.ndarray], sampling: SamplingParams, seed: int) -> SequenceBatch:
            assert generation is not None
            seeds = request_seeds(seed, "evaluation", step, len(prompts))
            requests = SequenceBatch.from_lists(prompts, sequence_columns={"seed": seeds})
            return generation.router.generate(requests, sampling)

        def complete(rows: Sequence[Row], sampling: SamplingParams, seed: int) -> tuple[SequenceBatch, list[Sample]]:
            assert generation is not None
            return self._complete(generation, rows, sampling, seed=seed, step=step)

        def score(samples: Sequence[Sample]) -> np.ndarray:
            assert rewards is not None
            scores = rewards.score(samples)
            counts.update(scores.counts)
            return scores.rewards

        return EvaluationContext(
            step=step,
            seed=self.seed,
            rows=self.rows,
            tokenizer=self.tokenizer,
            algorithm=self.algorithm,
            models=self.models,
            generate=generate if generation is not None else None,
            score=score if rewards is not None else None,
            complete=complete if generation is not None else None,
        )

    def _due(self, step: int) -> list[tuple[ComponentChoice, Evaluator]]:
        def due(every: int | None) -> bool:
            return step in (0, self.last) or (every is not None and step % every == 0)

        return [(choice, evaluator) for choice, evaluator in self.evaluators if due(choice.config.every)]

    def _complete(
        self, generation: Generation, rows: Sequence[Row], sampling: SamplingParams, *, seed: int, step: int
    ) -> tuple[SequenceBatch, list[Sample]]:
        """The rows' prompts completed as in rollouts: by the generator, or in conversations with the environment."""
        conversations, limit_name = generation.conversations, "the evaluator's max_new_tokens"
        if conversations is not None:
            sampling, limit_name = conversations.sampling(sampling), conversations.limit_name(limit_name)
        prompts = Prompts(
            rows,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            max_new_tokens=sampling.max_new_tokens,
            on_long=self.on_long,
            tools=conversations.tools if conversations is not None else (),
            section="eval_data",
            limit_name=limit_name,
        )
        # In order, so that the first of them are the samples shown; the same rows at every evaluation.
        prompts.check_rows(range(len(rows)), level=logging.INFO if step else logging.WARNING)
        kept = [index for index in range(len(rows)) if len(prompts[index])]
        if not kept:
            raise DataError(f"none of the {len(rows):,} rows of eval_data leaves room for a completion")
        rows = [rows[index] for index in kept]
        seeds = request_seeds(seed, "evaluation", step, len(kept))
        requests = SequenceBatch.from_lists([prompts[index] for index in kept], sequence_columns={"seed": seeds})
        if conversations is None:
            batch, messages = generation.router.generate(requests, sampling), None
        else:
            done = conversations.run(requests, rows, sampling)
            batch, messages = done.batch, done.messages
        return batch, to_samples(batch, rows, self.tokenizer, messages=messages)


def evaluations_of(
    stage: StageConfig, driver: DriverParts, *, models: Mapping[str, Model], generation: Generation | None
) -> Evaluations:
    """The evaluations that a stage's config asks for."""
    return Evaluations(
        evaluators=driver.evaluators,
        rows=driver.eval_rows,
        tokenizer=driver.tokenizer,
        algorithm=driver.algorithm,
        rewards=driver.rewards,
        models=models,
        generation=generation,
        max_length=stage.model.max_length,
        on_long=getattr(stage.algorithm.config, "on_long_prompt", "skip"),
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
