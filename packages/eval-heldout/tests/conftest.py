"""A whole small world: a tokenizer of code points, a generator that adds, and an algorithm that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.evaluator import EvaluationContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample
from rl_rollout.samples import to_samples

END = 1


class CodePoints:
    """Tokens are code points; 0 pads and 1 ends."""

    vocab_size = 0x110000
    special_tokens: Mapping[str, int | None] = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": 0}

    def encode_prompt(self, prompt: str) -> np.ndarray:
        return np.array([ord(c) for c in prompt], np.int32)

    def encode_example(self, row: Mapping[str, Any], loss_on: str) -> tuple[np.ndarray, np.ndarray]:
        prompt, completion = self.encode_prompt(row["prompt"]), self.encode_prompt(row["completion"])
        mask = np.concatenate([np.zeros(len(prompt)), np.ones(len(completion) + 1)]).astype(np.float32)
        return np.concatenate([prompt, completion, [END]]).astype(np.int32), mask

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(t) for t in tokens if t > END)


class CountingAlgorithm:
    """Its held-out loss is the mean number of trained tokens per sequence."""

    def __init__(self, kind: str = "examples") -> None:
        self.kind = kind

    def plan(self) -> BatchPlan:
        return BatchPlan(input=self.kind, rows_per_step=1)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: CodePoints) -> SequenceBatch:
        pairs = [tokenizer.encode_example(row, "completion") for row in rows]
        return SequenceBatch.from_lists([t for t, _ in pairs], token_columns={"loss_mask": [m for _, m in pairs]})

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, Any]) -> dict[str, float]:
        return {"eval/loss": float(batch.token_columns["loss_mask"].sum() / len(batch))}


class Adder:
    """Completes ``a+b=`` with the sum in sample 0 and one less in every further sample; remembers what it was asked."""

    def __init__(self) -> None:
        self.sampling: SamplingParams | None = None
        self.seed: int | None = None

    def __call__(self, prompts: Sequence[np.ndarray], sampling: SamplingParams, seed: int) -> SequenceBatch:
        self.sampling, self.seed = sampling, seed
        sequences, columns = [], {"request": [], "sample": [], "truncated": [], "prompt_length": []}
        for request, prompt in enumerate(prompts):
            a, b = "".join(map(chr, prompt)).rstrip("=").split("+")
            for sample in range(sampling.n):
                answer = [*map(ord, str(int(a) + int(b) - sample)), END]
                cut = answer[: sampling.max_new_tokens]
                sequences.append(np.array([*prompt, *cut], np.int32))
                columns["request"].append(request)
                columns["sample"].append(sample)
                columns["truncated"].append(len(cut) < len(answer))
                columns["prompt_length"].append(len(prompt))
        return SequenceBatch.from_lists(sequences, sequence_columns=columns)


def _complete(
    adder: Adder, rows: Sequence[Mapping[str, Any]], sampling: SamplingParams, seed: int
) -> tuple[SequenceBatch, list[Sample]]:
    """What the core does for evaluators, without a router."""
    batch = adder([CodePoints().encode_prompt(row["prompt"]) for row in rows], sampling, seed)
    return batch, to_samples(batch, rows, CodePoints())


@pytest.fixture
def adder() -> Adder:
    return Adder()


@pytest.fixture
def context(adder: Adder) -> Callable[..., EvaluationContext]:
    def build(rows: list[dict[str, Any]], **fields: Any) -> EvaluationContext:
        defaults: dict[str, Any] = {
            "step": 0,
            "seed": 7,
            "rows": rows,
            "tokenizer": CodePoints(),
            "algorithm": CountingAlgorithm(),
            "models": {},
            "complete": lambda rows, sampling, seed: _complete(adder, rows, sampling, seed),
            "score": lambda samples: np.array([s.completion == s.row["answer"] for s in samples], np.float32),
        }
        return EvaluationContext(**(defaults | fields))

    return build


@pytest.fixture
def rollouts_algorithm() -> CountingAlgorithm:
    return CountingAlgorithm("rollouts")
