"""A real, tiny policy trained in this process through the loss contract, and a tokenizer of letters."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.algorithm import combine
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelInfo
from rl_torch.losses import TokenOutputs

torch.set_num_threads(1)

VOCABULARY = 12


def columns_of(batch: SequenceBatch, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    columns = {**batch.token_columns, **batch.sequence_columns}
    tensors = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def outputs_of(logprobs: torch.Tensor, batch: SequenceBatch) -> TokenOutputs:
    return TokenOutputs(
        logprobs=logprobs,
        entropy=None,
        values=None,
        scores=None,
        sequence_ids=torch.from_numpy(batch.sequence_ids),
        num_sequences=len(batch),
    )


def outputs_from_logits(logits: list[torch.Tensor], batch: SequenceBatch) -> TokenOutputs:
    """``logits[i]`` is [L_i, V]; position t predicts token t + 1; a sequence's first token gets 0."""
    logprobs = []
    for index, scores in enumerate(logits):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(index)].astype(np.int64))
        chosen = torch.log_softmax(scores[:-1], dim=-1).gather(1, tokens[1:, None]).squeeze(1)
        logprobs.append(torch.cat([chosen.new_zeros(1), chosen]))
    return outputs_of(torch.cat(logprobs), batch)


class TinyModel:
    """The controller's ``Model`` with a GRU language model behind it and Adam as its optimizer."""

    def __init__(
        self,
        *,
        learning_rate: float = 0.01,
        max_tokens: int = 10_000,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(VOCABULARY, 16).to(dtype)
        self.gru = torch.nn.GRU(16, 16, batch_first=True).to(dtype)
        self.head = torch.nn.Linear(16, VOCABULARY).to(dtype)
        self.dtype, self.max_tokens, self.learning_rate = dtype, max_tokens, learning_rate
        self.parameters = [*self.embedding.parameters(), *self.gru.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.info = ModelInfo(parameters=0, max_length=0, vocab_size=VOCABULARY)
        self.forwarded: list[int] = []

    def logits(self, batch: SequenceBatch) -> list[torch.Tensor]:
        rows = [torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64)) for i in range(len(batch))]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        scores = self.head(self.gru(self.embedding(padded))[0])
        return [scores[i, : len(row)] for i, row in enumerate(rows)]

    def forward(self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0):
        """Counts the sequences of each call in ``forwarded``."""
        assert outputs == ("logprobs",)
        assert temperature == 1.0
        self.forwarded.append(len(batch))
        with torch.no_grad():
            logprobs = outputs_from_logits(self.logits(batch), batch).logprobs.numpy()
        return {"logprobs": np.where(batch.token_columns["loss_mask"] != 0, logprobs, 0).astype(np.float32)}

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        self.optimizer.zero_grad()
        metrics = self._run(batch, loss, scale or Scale.of(batch), backward=True)
        norm = torch.sqrt(sum((p.grad.square().sum() for p in self.parameters), torch.zeros((), dtype=self.dtype)))
        self.optimizer.step()
        return metrics | {"grad_norm": norm.item(), "learning_rate": self.learning_rate}

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        return self._run(batch, loss, scale or Scale.of(batch), backward=False)

    def _run(self, batch: SequenceBatch, loss: LossSpec, scale: Scale, *, backward: bool) -> dict[str, float]:
        module, _, name = loss.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        reduced: dict[str, float] = {}
        for indices in batch.pack(self.max_tokens):
            part = batch.select(indices)
            outputs = outputs_from_logits(self.logits(part), part)
            value, metrics = function(outputs, columns_of(part, self.dtype), scale, **loss.options)
            if backward:
                value.backward()
            for key, metric in {"loss": value, **metrics}.items():
                number = float(metric.detach())
                reduced[key] = combine(key, reduced[key], number) if key in reduced else number
        return reduced

    def gradient(self) -> np.ndarray:
        return torch.cat([p.grad.flatten() for p in self.parameters]).double().numpy()


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
    return Tools(TinyModel, CharTokenizer, columns_of, outputs_of, outputs_from_logits, ragged_pairs)
