"""A real, tiny policy trained in this process through the loss contract."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.model import combine

torch.set_num_threads(1)


@dataclass
class TokenOutputs:
    """What a backend hands to a loss: flat tensors without padding."""

    logprobs: torch.Tensor
    sequence_ids: torch.Tensor
    sequences: int
    entropy: torch.Tensor | None = None

    def sum_per_sequence(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(self.sequences).index_add(0, self.sequence_ids, x)


def columns_of(batch: SequenceBatch, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    columns = {**batch.token_columns, **batch.sequence_columns}
    tensors = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def outputs_from_logits(
    logits: list[torch.Tensor], batch: SequenceBatch, temperature: float = 1.0, entropy: bool = False
) -> TokenOutputs:
    """``logits[i]`` is [L_i, V]; position t predicts token t + 1; a sequence's first token gets 0."""
    logprobs, entropies = [], []
    for index, scores in enumerate(logits):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(index)].astype(np.int64))
        distribution = torch.log_softmax(scores[:-1] / temperature, dim=-1)
        chosen = distribution.gather(1, tokens[1:, None]).squeeze(1)
        logprobs.append(torch.cat([chosen.new_zeros(1), chosen]))
        entropies.append(torch.cat([chosen.new_zeros(1), -(distribution.exp() * distribution).sum(-1)]))
    return TokenOutputs(
        logprobs=torch.cat(logprobs),
        sequence_ids=torch.from_numpy(batch.sequence_ids),
        sequences=len(batch),
        entropy=torch.cat(entropies) if entropy else None,
    )


class TinyModel:
    """The controller's ``Model`` with a GRU language model behind it and SGD or Adam as its optimizer."""

    def __init__(
        self,
        *,
        vocabulary: int = 12,
        learning_rate: float = 0.1,
        optimizer: str = "sgd",
        max_tokens: int = 10_000,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(vocabulary, 16).to(dtype)
        self.gru = torch.nn.GRU(16, 16, batch_first=True).to(dtype)
        self.head = torch.nn.Linear(16, vocabulary).to(dtype)
        self.dtype, self.max_tokens, self.learning_rate = dtype, max_tokens, learning_rate
        self.parameters = [*self.embedding.parameters(), *self.gru.parameters(), *self.head.parameters()]
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        self.optimizer = kind(self.parameters, lr=learning_rate)
        self.calls: list[str] = []

    def logits(self, batch: SequenceBatch) -> list[torch.Tensor]:
        rows = [torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64)) for i in range(len(batch))]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        scores = self.head(self.gru(self.embedding(padded))[0])
        return [scores[i, : len(row)] for i, row in enumerate(rows)]

    def forward(self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0):
        self.calls.append("forward")
        with torch.no_grad():
            result = outputs_from_logits(self.logits(batch), batch, temperature, "entropy" in outputs)
        mask = batch.token_columns["loss_mask"] != 0
        return {name: np.where(mask, getattr(result, name).numpy(), 0).astype(np.float32) for name in outputs}

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        self.calls.append("train")
        self.optimizer.zero_grad()
        metrics = self._run(batch, loss, scale or Scale.of(batch), backward=True)
        norm = torch.sqrt(sum((p.grad.square().sum() for p in self.parameters), torch.zeros((), dtype=self.dtype)))
        self.optimizer.step()
        return metrics | {"grad_norm": norm.item(), "learning_rate": self.learning_rate}

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        self.calls.append("evaluate")
        return self._run(batch, loss, scale or Scale.of(batch), backward=False)

    def _run(self, batch: SequenceBatch, loss: LossSpec, scale: Scale, *, backward: bool) -> dict[str, float]:
        module, _, name = loss.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        reduced: dict[str, float] = {}
        for indices in batch.pack(self.max_tokens):
            part = batch.select(indices)
            outputs = outputs_from_logits(self.logits(part), part, loss.temperature, "entropy" in loss.outputs)
            value, metrics = function(outputs, columns_of(part, self.dtype), scale, **loss.options)
            if backward:
                value.backward()
            for key, metric in {"loss": value, **metrics}.items():
                number = float(metric.detach())
                reduced[key] = combine(key, reduced[key], number) if key in reduced else number
        return reduced

    def gradient(self) -> np.ndarray:
        return torch.cat([p.grad.flatten() for p in self.parameters]).double().numpy()

    def copy_from(self, other: TinyModel) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.parameters, other.parameters, strict=True):
                mine.copy_(theirs)


class CharTokenizer:
    """Token ids are the letters' places in the alphabet; 0 ends a completion."""

    def encode_example(self, row: Mapping[str, Any], loss_on: str) -> tuple[np.ndarray, np.ndarray]:
        prompt = [ord(c) - ord("a") + 1 for c in row["prompt"]]
        completion = [ord(c) - ord("a") + 1 for c in row["completion"]] + [0]
        mask = np.ones(len(prompt) + len(completion), np.float32)
        if loss_on == "completion":
            mask[: len(prompt)] = 0
        return np.array(prompt + completion, np.int32), mask


@dataclass
class Tools:
    TinyModel: type[TinyModel]
    CharTokenizer: type[CharTokenizer]


@pytest.fixture
def tools() -> Tools:
    return Tools(TinyModel, CharTokenizer)
