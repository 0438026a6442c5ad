"""Small models, one engine that most tests share, and what Hugging Face says about its samples.

Nothing here is collected where vLLM is not installed: the package has a test environment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
    from rl_core.batch import SequenceBatch
    from rl_core.contracts.backend import WeightBucket
    from rl_core.contracts.model import ModelSpec
    from rl_generation_vllm.generator import VllmGenerator

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


class Small:
    """Small real objects: models of 48 tokens, prompts, generators, and readable completions."""

    vocab = 48

    def spec(self, architecture: str = "qwen2", *, seed: int = 0, max_length: int = 160, **fields: Any) -> ModelSpec:
        """Two layers with two heads of 32 and grouped-query attention; wide weights, so distributions are uneven."""
        from rl_core.contracts.model import ModelSpec

        extra = {"initializer_range": 0.2, **fields.pop("extra", {})}
        init = {"architecture": architecture, "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 96}
        init |= {"tie_embeddings": True, "extra": extra, **fields}
        return ModelSpec(init=init, vocab_size=self.vocab, max_length=max_length, seed=seed)

    def model(self, spec: ModelSpec) -> torch.nn.Module:
        """The same model in transformers, float32."""
        import torch
        from rl_torch.models import build_model

        return build_model(spec, dtype=torch.float32)

    def buckets(self, spec: ModelSpec) -> list[WeightBucket]:
        """Its weights, as a backend sends them."""
        from rl_torch.weights import to_buckets

        return list(to_buckets(self.model(spec).state_dict().items(), bucket_bytes=50_000))

    def generator(self, spec: ModelSpec, tokenizer_path: str | None = None, **options: Any) -> VllmGenerator:
        """A loaded generator on the CPU, with the spec's own weights as version 0."""
        from rl_core.contracts.backend import WorkerContext
        from rl_generation_vllm.config import VllmConfig
        from rl_generation_vllm.generator import VllmGenerator

        generator = VllmGenerator(VllmConfig(name="vllm", **options))
        generator.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=1))
        generator.load(spec, tokenizer_path)
        if spec.init is not None:
            generator.update_weights(self.buckets(spec), 0)
        return generator

    def prompts(self, lengths: Sequence[int], *, seed: int = 0) -> list[list[int]]:
        """Random prompts of these lengths."""
        rng = np.random.default_rng(seed)
        return [rng.integers(0, self.vocab, length).tolist() for length in lengths]

    def requests(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int] | None = None) -> SequenceBatch:
        """Prompts with a seed each (default: their index)."""
        from rl_core.batch import SequenceBatch

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
            got.token_columns["sampled_logprobs"], expected.token_columns["sampled_logprobs"], atol=1e-4
        )

    def gap(self, batch: SequenceBatch, model: torch.nn.Module, *, temperature: float = 1.0) -> float:
        """Largest difference of the batch's log-probabilities and ``model``'s, over the full vocabulary."""
        worst = 0.0
        for index in range(len(batch)):
            where, prompt = batch.sequence(index), int(batch.sequence_columns["prompt_length"][index])
            tokens = batch.tokens[where]
            logprobs = self.logprobs(model, tokens, temperature=temperature or 1.0)
            expected = logprobs[np.arange(prompt - 1, len(tokens) - 1), tokens[prompt:]]
            got = batch.token_columns["sampled_logprobs"][where][prompt:]
            worst = max(worst, float(np.abs(got - expected).max()))
        return worst

    def logprobs(self, model: torch.nn.Module, tokens: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
        """float32 [T, V]: ``model``'s log-probabilities of what follows each token."""
        import torch

        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].float()
        return (logits / temperature).log_softmax(-1).numpy()


@pytest.fixture(scope="session")
def small() -> Small:
    return Small()


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory, small: Small) -> str:
    """A saved tokenizer with one character per token: a..z, A..V."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = [chr(ord("a") + i) for i in range(26)] + [chr(ord("A") + i) for i in range(small.vocab - 26)]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(names)}, unk_token="a"))
    raw.decoder = decoders.Fuse()
    path = str(tmp_path_factory.mktemp("letters"))
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator(small: Small, letters: str):
    """An engine for a whole test module; a test that replaces its weights puts those of ``small.spec()`` back."""
    built = small.generator(small.spec(), letters, max_num_seqs=64)
    yield built
    built.close()
