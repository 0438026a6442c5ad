"""Conformance rules for evaluators (:mod:`rl_core.contracts.evaluator`), on completions that are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.data import Row
from rl_core.contracts.evaluator import EvaluationContext, EvaluationResult, Evaluator
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample

from rl_plugin_kit.letters import EOS, LetterTokenizer
from rl_plugin_kit.rows import questions
from rl_plugin_kit.suites.base import ComponentConformance


class EvaluatorConformance(ComponentConformance):
    """Attributes:
    rows: of ``eval_data``.
    """

    kind = "evaluator"
    contracts = (Evaluator,)
    rows: ClassVar[Sequence[Row]] = tuple(questions())

    def test_it_returns_finite_metrics_of_its_own_section(self) -> None:
        result = self._evaluate()
        self.expect(
            isinstance(result, EvaluationResult), f"evaluate returned {type(result).__name__}, not an EvaluationResult"
        )
        self.check_metrics(result.metrics, "evaluate")
        self.expect(result.metrics, "evaluate returned no metrics")
        odd = sorted(name for name in result.metrics if not name.startswith("eval/"))
        self.expect(not odd, f"evaluate returned {', '.join(odd)}; its metrics begin with 'eval/'")

    def test_its_samples_are_plain_rows(self) -> None:
        for sample in self._evaluate().samples:
            self.expect(isinstance(sample, Mapping), f"a sample is {type(sample).__name__}, not a dict")
            try:
                json.dumps(dict(sample))
            except (TypeError, ValueError) as error:
                self.expect(False, f"a sample holds a value that JSON does not have: {error}")

    def test_the_same_seed_gives_the_same_result(self) -> None:
        a, b = self._evaluate().metrics, self._evaluate().metrics
        self.expect(dict(a) == dict(b), f"two evaluations with the same seed give {dict(a)} and {dict(b)}")

    def test_it_trains_nothing(self) -> None:
        model = UntouchedModel()
        self._evaluate(model)
        self.expect(not model.touched, f"evaluate calls {', '.join(model.touched)} of a model; it must not change any")

    def _evaluate(self, model: UntouchedModel | None = None) -> EvaluationResult:
        context: Any = EvaluationContext(
            step=1,
            seed=5,
            rows=self.rows,
            tokenizer=LetterTokenizer(),
            algorithm=Examples(),  # type: ignore[arg-type]
            models={"policy": model or UntouchedModel()},  # type: ignore[dict-item]
            generate=generate,
            score=lambda samples: np.array([s.completion == s.row["answer"] for s in samples], np.float32),
            complete=complete,
        )
        return self.build().evaluate(context)


class UntouchedModel:
    """A model that notes what would change it."""

    def __init__(self) -> None:
        self.touched: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in ("train", "restore"):
            raise AttributeError(name)

        def note(*arguments: Any, **options: Any) -> dict[str, float]:
            self.touched.append(name)
            return {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}

        return note

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Every token has probability 1/2."""
        mask = batch.token_columns.get("loss_mask", np.ones(len(batch.tokens), np.float32))
        values = {name: (-np.log(2.0) * mask).astype(np.float32) for name in outputs}
        return values | ({"scores": np.zeros(len(batch), np.float32)} if "scores" in outputs else {})


class Examples:
    """An algorithm that learns from examples, with a loss of ln 2 per token."""

    def plan(self) -> BatchPlan:
        return BatchPlan(input="examples", rows_per_step=4)

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> SequenceBatch:
        tokens, masks = zip(*(tokenizer.encode_example(row, "completion") for row in rows), strict=True)
        return SequenceBatch.from_lists(tokens, token_columns={"loss_mask": masks})

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, Any]) -> dict[str, float]:
        found = models["policy"].forward(batch)["logprobs"]
        return {"eval/loss": float(-found.sum() / batch.token_columns["loss_mask"].sum())}


def generate(prompts: Sequence[Any], sampling: SamplingParams, seed: int) -> SequenceBatch:
    """Completions of one or two digits with the columns of a generator; the same for the same seed."""
    rows, lengths, cuts = [], [], []
    for index, prompt in enumerate(prompts):
        for sample in range(sampling.n):
            draw = np.random.default_rng([seed, index, sample])
            tail = draw.integers(2, 12, size=min(int(draw.integers(1, 3)), sampling.max_new_tokens))
            rows.append(np.concatenate([prompt, tail, [EOS]]).astype(np.int32))
            lengths.append(len(prompt))
            cuts.append(index)
    masks = [(np.arange(len(row)) >= cut).astype(np.float32) for row, cut in zip(rows, lengths, strict=True)]
    return SequenceBatch.from_lists(
        rows,
        token_columns={
            "loss_mask": masks,
            "sampled_logprobs": [-mask for mask in masks],
            "weights_version": [np.ones(len(row), np.int32) for row in rows],
        },
        sequence_columns={
            "request": np.array(cuts, np.int64),
            "sample": np.tile(np.arange(sampling.n, dtype=np.int64), len(prompts)),
            "truncated": np.zeros(len(rows), bool),
            "prompt_length": np.array(lengths, np.int64),
        },
    )


def complete(rows: Sequence[Row], sampling: SamplingParams, seed: int) -> tuple[SequenceBatch, list[Sample]]:
    """:func:`generate` for the prompts of ``rows``, with the samples."""
    tokenizer = LetterTokenizer()
    batch = generate([tokenizer.encode_prompt(row["prompt"]) for row in rows], sampling, seed)
    columns, samples = batch.sequence_columns, []
    for index, request in enumerate(columns["request"].tolist()):
        tokens, cut = batch.tokens[batch.sequence(index)], int(columns["prompt_length"][index])
        samples.append(
            Sample(
                row=rows[request],
                prompt=tokenizer.decode(tokens[:cut]),
                completion=tokenizer.decode(tokens[cut:]),
                completion_tokens=len(tokens) - cut,
                truncated=bool(columns["truncated"][index]),
            )
        )
    return batch, samples
