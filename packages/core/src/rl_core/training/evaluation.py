"""Running a stage's evaluators: before the first step, every so often, and after the last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
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
    from rl_core.config.stage import ComponentChoice
    from rl_core.contracts.data import Row
    from rl_core.contracts.evaluator import Evaluator
    from rl_core.training.assembly import Assembly


def due(choice: ComponentChoice, step: int, last: int) -> bool:
    """Whether an evaluator runs after ``step`` (0: before training)."""
    every = choice.config.every
    return step in (0, last) or (every is not None and step % every == 0)


def evaluate(
    parts: Assembly, evaluators: Sequence[tuple[ComponentChoice, Evaluator]], step: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """``(metrics, samples)`` of the given evaluators.

    Raises:
        RLError: an evaluator raised; the message names it and its package.
    """
    counts: Counter[str] = Counter()
    context = evaluation_context(parts, step, counts=counts)
    metrics: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    for choice, evaluator in evaluators:
        try:
            result = evaluator.evaluate(context)
        except RLError:
            raise
        except Exception as error:
            raise RLError(
                f"evaluator {choice.name!r} ({choice.package}) raised {type(error).__name__}: {error}"
            ) from error
        twice = sorted(set(metrics) & set(result.metrics))
        if twice:
            raise RLError(
                f"evaluator {choice.name!r} ({choice.package}) measures {twice[0]!r}, which an evaluator before it "
                "measured already\n    remove one of them from evaluators"
            )
        metrics |= result.metrics
        samples.extend({**row, "evaluator": choice.name} for row in result.samples)
    return metrics | {f"eval/{name}": float(count) for name, count in counts.items()}, samples


def evaluation_context(parts: Assembly, step: int, *, counts: Counter[str] | None = None) -> EvaluationContext:
    """What evaluators see of a stage; failures of rewards are added to ``counts``."""
    router, driver, seed = parts.router, parts.driver, parts.stage.run.seed

    def generate(prompts: Sequence[np.ndarray], sampling: SamplingParams, seed: int) -> SequenceBatch:
        assert router is not None
        seeds = request_seeds(seed, "evaluation", step, len(prompts))
        return router.generate(SequenceBatch.from_lists(prompts, sequence_columns={"seed": seeds}), sampling)

    def complete(rows: Sequence[Row], sampling: SamplingParams, seed: int) -> tuple[SequenceBatch, list[Sample]]:
        return _complete(parts, rows, sampling, seed=seed, step=step)

    def score(samples: Sequence[Sample]) -> np.ndarray:
        assert driver.rewards is not None
        scores = driver.rewards.score(samples)
        if counts is not None:
            counts.update(scores.counts)
        return scores.rewards

    return EvaluationContext(
        step=step,
        seed=seed,
        rows=driver.eval_rows,
        tokenizer=driver.tokenizer,
        algorithm=driver.algorithm,
        models=parts.models,
        generate=generate if router is not None else None,
        score=score if driver.rewards is not None else None,
        complete=complete if router is not None else None,
    )


def _complete(
    parts: Assembly, rows: Sequence[Row], sampling: SamplingParams, *, seed: int, step: int
) -> tuple[SequenceBatch, list[Sample]]:
    """The rows' prompts completed as in rollouts: by the generator, or in conversations with the environment."""
    tokenizer, conversations = parts.driver.tokenizer, parts.conversations()
    limit_name = "the evaluator's max_new_tokens"
    if conversations is not None:
        sampling, limit_name = conversations.sampling(sampling), conversations.limit_name(limit_name)
    prompts = Prompts(
        rows,
        tokenizer=tokenizer,
        max_length=parts.stage.model.max_length,
        max_new_tokens=sampling.max_new_tokens,
        on_long=getattr(parts.stage.algorithm.config, "on_long_prompt", "skip"),
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
        assert parts.router is not None
        batch, messages = parts.router.generate(requests, sampling), None
    else:
        done = conversations.run(requests, rows, sampling)
        batch, messages = done.batch, done.messages
    return batch, to_samples(batch, rows, tokenizer, messages=messages)
