"""Policy and value models trained in this process: tiny transformers through rl_torch's loss contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelSpec
from rl_torch.losses import LossBatch, MetricSums, TokenOutputs, call_loss, load_loss
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model

torch.set_num_threads(1)

VOCABULARY = 12
SHAPE = {"architecture": "qwen2", "hidden_size": 16, "layers": 1, "heads": 2, "ffn": 32}


class TinyModel:
    """The controller's ``Model`` with a transformer behind it, and Adam as its optimizer."""

    def __init__(
        self, head: str = "lm", *, learning_rate: float = 1e-2, max_tokens: int = 10_000, seed: int = 0
    ) -> None:
        spec = ModelSpec(init=SHAPE, vocab_size=VOCABULARY, seed=seed, max_length=32)
        built = build_model(spec, dtype=torch.float32, head=head)
        if head == "scalar":  # not the zeros a new head starts with, so that values differ
            torch.nn.init.normal_(built.score.weight, generator=torch.Generator().manual_seed(seed))
        self.model = wrap_model(built, head)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.learning_rate, self.max_tokens = learning_rate, max_tokens
        self.calls: list[str] = []

    def forward(self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0):
        self.calls.append(f"forward {' '.join(outputs)}")
        with torch.no_grad():
            computed = compute_outputs(self.model, MicroBatch.build(batch), outputs, temperature=temperature)
        return {name: getattr(computed, name).numpy() for name in outputs}

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        self.calls.append("train")
        self.optimizer.zero_grad()
        function, sums, scale = load_loss(loss.function), MetricSums(), scale or Scale.of(batch)
        for indices in batch.pack(self.max_tokens):
            micro = MicroBatch.build(batch.select(indices))
            outputs = compute_outputs(self.model, micro, loss.outputs, temperature=loss.temperature)
            value, metrics = call_loss(function, loss, outputs, LossBatch(micro.batch), scale)
            value.backward()
            sums.add({**metrics, "loss": value})
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.optimizer.step()
        return sums.result() | {"grad_norm": norm.item(), "learning_rate": self.learning_rate}

    def gradient(self) -> np.ndarray:
        return torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]).double().numpy()

    def weights(self) -> np.ndarray:
        return torch.cat([p.detach().flatten() for p in self.parameters]).double().numpy()


def ragged_rollouts(policy: TinyModel, *, sequences: int = 8, seed: int = 0, **columns: Any) -> SequenceBatch:
    """Random completions of 2 to 6 tokens after 1 to 3 prompt tokens; every third one has a masked token inside."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, 4, sequences)
    lengths = prompts + rng.integers(2, 7, sequences)
    masks = [(np.arange(n) >= p).astype(np.float32) for n, p in zip(lengths, prompts, strict=True)]
    for mask in masks[::3]:
        mask[-2] = 0.0
    batch = SequenceBatch.from_lists(
        [rng.integers(0, VOCABULARY, n) for n in lengths],
        token_columns={"loss_mask": masks},
        sequence_columns={
            "group": np.arange(sequences),
            "reward": rng.normal(size=sequences).astype(np.float32),
            "truncated": rng.random(sequences) < 0.5,
            **columns,
        },
    )
    mask = batch.token_columns["loss_mask"]
    temperature = float(columns["temperature"][0]) if "temperature" in columns else 1.0
    exact = policy.forward(batch, temperature=temperature)["logprobs"]
    policy.calls.clear()
    noise = rng.normal(scale=0.1, size=len(mask)).astype(np.float32)
    return batch.with_columns(token={"sampled_logprobs": (exact + noise) * mask})


def value_outputs(values: torch.Tensor, sequence_ids: list[int] | None = None) -> TokenOutputs:
    """What a backend hands to the value loss."""
    ids = torch.tensor(sequence_ids or [0] * len(values))
    return TokenOutputs(None, None, values, None, ids, int(ids.max()) + 1)


@dataclass
class Tools:
    TinyModel: type[TinyModel]
    rollouts: Any
    value_outputs: Any


@pytest.fixture
def tools() -> Tools:
    return Tools(TinyModel, ragged_rollouts, value_outputs)


@pytest.fixture
def models() -> dict[str, TinyModel]:
    return {"policy": TinyModel(), "value": TinyModel("scalar")}
