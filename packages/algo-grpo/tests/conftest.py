"""A real, tiny policy trained in this process through the loss contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_torch.testing import GruModel, columns_of, outputs_from_logits, with_sampled_logprobs

torch.set_num_threads(1)


def ragged_rollouts(model: GruModel, *, sequences: int = 8, group_size: int = 4, seed: int = 0, **columns: Any):
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
    return with_sampled_logprobs(batch, model, rng)


@dataclass
class Tools:
    TinyModel: type[GruModel]
    rollouts: Any
    outputs_from_logits: Any
    columns_of: Any


@pytest.fixture
def tools() -> Tools:
    return Tools(GruModel, ragged_rollouts, outputs_from_logits, columns_of)


@pytest.fixture
def models() -> Mapping[str, GruModel]:
    return {"policy": GruModel()}
