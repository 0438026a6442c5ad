"""Small models, and a way to ask the generator for completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import ModelSpec
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator


class Small:
    """Small real objects: models of 48 tokens, prompts, generators, and readable completions."""

    vocab = 48
    rounding = 16 * 8 * 2**-24 * 6
    """Between log-probs of the same float32 weights that were computed in different ways: about 16 sums of 32 or 64
    products follow one another, each off by about sqrt(64) units of 2⁻²⁴ (Higham & Mary 2019), in logits of up to 6."""

    def spec(self, architecture: str = "qwen2", *, seed: int = 0, max_length: int = 64, **fields: Any) -> ModelSpec:
        """Two layers of width 32 with grouped-query attention; weights large enough for uneven distributions."""
        extra = {"initializer_range": 0.3, **fields.pop("extra", {})}
        init = {"architecture": architecture, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64}
        init |= {"tie_embeddings": False, "extra": extra, **fields}
        return ModelSpec(init=init, vocab_size=self.vocab, max_length=max_length, seed=seed)

    def generator(self, spec: ModelSpec | None = None, tokenizer_path: str | None = None, **options) -> HfGenerator:
        """A loaded generator on the CPU."""
        generator = HfGenerator(HfGeneratorConfig(name="hf", **options))
        generator.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=1))
        generator.load(spec or self.spec(), tokenizer_path)
        return generator

    def prompts(self, lengths: Sequence[int], *, seed: int = 0) -> list[list[int]]:
        """Random prompts of these lengths."""
        rng = np.random.default_rng(seed)
        return [rng.integers(0, self.vocab, length).tolist() for length in lengths]

    def requests(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int] | None = None) -> SequenceBatch:
        """Prompts with a seed each (default: their index)."""
        seed = np.arange(len(prompts)) if seeds is None else np.asarray(seeds)
        return SequenceBatch.from_lists(prompts, sequence_columns={"seed": seed.astype(np.int64)})

    def completions(self, batch: SequenceBatch) -> list[list[int]]:
        """Completion tokens of each sequence."""
        starts = batch.offsets[:-1] + batch.sequence_columns["prompt_length"]
        return [batch.tokens[a:b].tolist() for a, b in zip(starts, batch.offsets[1:], strict=True)]

    def assert_same(self, got: SequenceBatch, expected: SequenceBatch) -> None:
        """Equal tokens and columns; log-probabilities equal up to floating-point rounding."""
        assert self.completions(got) == self.completions(expected)
        for name in ("prompt_length", "truncated", "sample"):
            assert np.array_equal(got.sequence_columns[name], expected.sequence_columns[name])
        np.testing.assert_allclose(
            got.token_columns["sampled_logprobs"], expected.token_columns["sampled_logprobs"], atol=self.rounding
        )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small() -> Small:
    return Small()
