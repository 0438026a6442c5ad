"""Rules for rollout sources (:mod:`rl_core.contracts.rollout`) that need no workers; the tiny run has the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from rl_core.algorithm import AlgorithmBase
from rl_core.component import Component, ComponentChoice
from rl_core.config.run_section import RunSection
from rl_core.config.sections import AlgorithmConfig, ComponentConfig, GeneratorConfig, ModelConfig, RewardConfig
from rl_core.config.stage import StageConfig
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.data import Row
from rl_core.contracts.reward import Sample
from rl_core.contracts.rollout import RolloutJob, RolloutSource
from rl_core.errors import DataError

from rl_plugin_kit.letters import LetterTokenizer
from rl_plugin_kit.rows import answers, questions
from rl_plugin_kit.suites.base import ComponentConformance

STEPS = 2


class RolloutConformance(ComponentConformance):
    """Attributes:
    rows: prompts that fit the context.
    """

    kind = "rollout"
    contracts = (RolloutSource,)
    rows: ClassVar[Sequence[Row]] = tuple(questions())

    def test_scores_are_the_weighted_rewards_in_the_order_of_the_samples(self) -> None:
        samples = list(answers())
        with self._prepared() as source:
            rewards, _ = source.score(samples)
        expected = [3.0 * len(sample.completion) for sample in samples]
        self.expect(
            isinstance(rewards, np.ndarray) and rewards.dtype == np.float32,
            f"score returned {type(rewards).__name__} {getattr(rewards, 'dtype', '')}, not a float32 array",
        )
        self.expect(
            np.allclose(rewards, expected),
            f"completions of {expected} characters, with weights 1 and 2, score {rewards.tolist()}",
        )

    def test_a_sample_that_a_reward_drops_is_counted_and_has_no_score(self) -> None:
        samples = [sample for sample in answers() if sample.completion]
        silent = Sample(row=samples[0].row, prompt=samples[0].prompt, completion="")
        with self._prepared(on_error="drop") as source:
            rewards, counts = source.score([samples[0], silent])
        self.expect(
            np.isnan(rewards).tolist() == [False, True],
            f"a reward failed for the second of two samples with on_error: drop, and score returned {rewards.tolist()}",
        )
        self.expect(any(counts.values()), f"a reward failed, and score counts {dict(counts)}")

    def test_rows_that_fit_are_encoded_while_workers_start(self) -> None:
        with self._prepared() as source, source.encoding(position=0, steps=STEPS):
            pass

    def test_a_row_without_a_prompt_is_named_before_the_first_step(self) -> None:
        rows = [{"answer": "1", "__where__": "rows.jsonl:7"}]
        try:
            with self._prepared(rows=rows) as source, source.encoding(position=0, steps=STEPS):
                pass
        except DataError as error:
            self.expect("rows.jsonl:7" in str(error), f"the DataError does not say where the row is: {error}")
        else:
            self.expect(False, "encoding accepts a row without a prompt")

    @contextmanager
    def _prepared(self, *, rows: Sequence[Row] = (), on_error: str = "zero") -> Iterator[RolloutSource]:
        """A source for two rewards, closed at the end."""
        source = self.build()
        algorithm = _Prompts(_PromptsConfig(name="prompts"))
        job = RolloutJob(
            _stage(on_error),
            rows=rows or self.rows,
            tokenizer=LetterTokenizer(),  # type: ignore[arg-type]
            algorithm=algorithm,  # type: ignore[arg-type]
            build=lambda choice: _Length(),
        )
        source.prepare(job)
        try:
            yield source
        finally:
            source.close()


class _Length:
    """A point for each character; fails where there is none."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [len(sample.completion) or float("nan") for sample in samples]


class _PromptsConfig(AlgorithmConfig):
    def plan(self) -> BatchPlan:
        return BatchPlan(input="rollouts", rows_per_step=2, group_size=2)


class _Prompts(AlgorithmBase):
    """Only its plan counts."""


def _stage(on_error: str) -> StageConfig:
    def choice(kind: str, name: str, config: Any) -> ComponentChoice:
        component = Component(kind, name, f"{__name__}:_Length", f"{__name__}:_PromptsConfig", "")
        return ComponentChoice(kind, name, component, "rl-plugin-kit", config)

    options: Mapping[str, Any] = {"timeout_s": None, "on_error": on_error}
    return StageConfig(
        name="train",
        model=ModelConfig(path="any", max_length=256),
        run=RunSection(steps=STEPS),
        algorithm=choice("algorithm", "prompts", _PromptsConfig(name="prompts")),
        backend=choice("backend", "any", ComponentConfig(name="any")),
        generator=choice("generator", "any", GeneratorConfig(name="any", max_new_tokens=4)),
        tokenizer=choice("tokenizer", "letters", ComponentConfig(name="letters")),
        data=choice("data_source", "questions", ComponentConfig(name="questions")),
        eval_data=None,
        rewards=tuple(
            choice("reward", name, RewardConfig(name=name, weight=weight, **options))
            for name, weight in (("one", 1.0), ("two", 2.0))
        ),
        evaluators=(),
        loggers=(),
        resolved={},
    )
