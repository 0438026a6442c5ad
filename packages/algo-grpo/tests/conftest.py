"""A real, tiny policy trained in this process through the loss contract."""

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
from rl_torch.losses import TokenOutputs

torch.set_num_threads(1)


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
        entropy=torch.cat(entropies) if entropy else None,
        values=None,
        scores=None,
        sequence_ids=torch.from_numpy(batch.sequence_ids),
        num_sequences=len(batch),
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


def ragged_rollouts(model: TinyModel, *, sequences: int = 8, group_size: int = 4, seed: int = 0, **columns: Any):
    """Random completions of 1 to 6 tokens after 1 to 3 prompt tokens, with log-probs near the model's own."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, 4, sequences)
    lengths = prompts + rng.integers(1, 7, sequences)
    tokens = [rng.integers(0, 12, n) for n in lengths]
    masks = [(np.arange(n) >= p).astype(np.float32) for n, p in zip(lengths, prompts, strict=True)]
    batch = SequenceBatch.from_lists(
        tokens,
        token_columns={"loss_mask": masks},
        sequence_columns={
            "group": np.arange(sequences) // group_size,
            "reward": rng.normal(size=sequences).astype(np.float32),
            **columns,
        },
    )
    mask = batch.token_columns["loss_mask"]
    temperature = float(columns["temperature"][0]) if "temperature" in columns else 1.0
    exact = model.forward(batch, temperature=temperature)["logprobs"]
    model.calls.clear()
    noise = rng.normal(scale=0.1, size=len(mask)).astype(np.float32)
    return batch.with_columns(token={"sampled_logprobs": (exact + noise) * mask})


@dataclass
class Tools:
    TinyModel: type[TinyModel]
    rollouts: Any
    outputs_from_logits: Any
    columns_of: Any


@pytest.fixture
def tools() -> Tools:
    return Tools(TinyModel, ragged_rollouts, outputs_from_logits, columns_of)


@pytest.fixture
def models() -> Mapping[str, TinyModel]:
    return {"policy": TinyModel()}
