"""Policy and value models trained in this process: tiny transformers through rl_torch's loss contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model
from rl_torch.testing import InProcessModel, with_sampled_logprobs

torch.set_num_threads(1)

VOCABULARY = 12
SHAPE = {"architecture": "qwen2", "hidden_size": 16, "layers": 1, "heads": 2, "ffn": 32}


class TinyModel(InProcessModel):
    """A transformer with either head, and Adam as its optimizer."""

    def __init__(self, head: str = "lm", *, learning_rate: float = 1e-2, seed: int = 0, **options: Any) -> None:
        spec = ModelSpec(init=SHAPE, vocab_size=VOCABULARY, seed=seed, max_length=32)
        built = build_model(spec, dtype=torch.float32, head=head)
        if head == "scalar":  # not the zeros a new head starts with, so that values differ
            torch.nn.init.normal_(built.score.weight, generator=torch.Generator().manual_seed(seed))
        self.model = wrap_model(built, head)
        super().__init__(self.model.parameters(), learning_rate=learning_rate, optimizer="adam", **options)

    def outputs(self, batch: SequenceBatch, names: tuple[str, ...], temperature: float) -> TokenOutputs:
        return compute_outputs(self.model, MicroBatch.build(batch), names, temperature=temperature)


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
    return with_sampled_logprobs(batch, policy, rng)


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
