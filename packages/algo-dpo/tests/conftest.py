"""A real, tiny policy trained in this process through the loss contract, and a tokenizer of letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelInfo
from rl_torch import testing
from rl_torch.losses import TokenOutputs

torch.set_num_threads(1)

VOCABULARY = 12


def outputs_of(logprobs: torch.Tensor, batch: SequenceBatch) -> TokenOutputs:
    return testing.outputs_of(batch, logprobs=logprobs)


class TinyModel(testing.GruModel):
    """Trained with Adam; counts the sequences of each forward call in ``forwarded``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"vocabulary": VOCABULARY, "learning_rate": 0.01, "optimizer": "adam", **options})
        self.info = ModelInfo(parameters=0, max_length=0, vocab_size=VOCABULARY)
        self.forwarded: list[int] = []

    def forward(self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0):
        assert outputs == ("logprobs",)
        assert temperature == 1.0
        self.forwarded.append(len(batch))
        return super().forward(batch)


class CharTokenizer:
    """Token ids are the letters' places in the alphabet; 0 ends a completion."""

    def encode_example(self, row: Mapping[str, Any], loss_on: str) -> tuple[np.ndarray, np.ndarray]:
        prompt = [ord(c) - ord("a") + 1 for c in row["prompt"]]
        completion = [ord(c) - ord("a") + 1 for c in row["completion"]] + [0]
        mask = np.ones(len(prompt) + len(completion), np.float32)
        mask[: len(prompt)] = 0
        return np.array(prompt + completion, np.int32), mask


def ragged_pairs(pairs: int = 4, *, seed: int = 0) -> SequenceBatch:
    """Random completions of 1 to 6 tokens after 1 to 3 prompt tokens, in shuffled order, with ``ref_logprob``."""
    rng = np.random.default_rng(seed)
    count = 2 * pairs
    prompts = rng.integers(1, 4, count)
    lengths = prompts + rng.integers(1, 7, count)
    order = rng.permutation(count)
    return SequenceBatch.from_lists(
        [rng.integers(0, VOCABULARY, n) for n in lengths],
        token_columns={
            "loss_mask": [(np.arange(n) >= p).astype(np.float32) for n, p in zip(lengths, prompts, strict=True)]
        },
        sequence_columns={
            "unit": (np.arange(count) // 2)[order] * 7 + 3,
            "chosen": (np.arange(count) % 2 == 0)[order],
            "desirable": (np.arange(count) % 3 == 0)[order],
            "ref_logprob": -2.5 * (lengths - prompts) + rng.normal(size=count),
            "kl_baseline": np.full(count, 0.3),
        },
    )


@dataclass
class Tools:
    TinyModel: type[TinyModel]
    CharTokenizer: type[CharTokenizer]
    columns_of: Any
    outputs_of: Any
    outputs_from_logits: Any
    ragged_pairs: Any


@pytest.fixture
def tools() -> Tools:
    return Tools(TinyModel, CharTokenizer, testing.columns_of, outputs_of, testing.outputs_from_logits, ragged_pairs)
