"""Rotary frequencies that transformers picks by the longest position of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model
from transformers import AutoConfig, AutoModelForCausalLM

TRAINED, LONGEST = 16, 64
LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [8.0, 4.0, 2.0, 1.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "original_max_position_embeddings": TRAINED,
    "rope_theta": 10000.0,
}
MSCALE = {"short_mscale": 1.2, "long_mscale": 1.5}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": TRAINED}),
    "longrope of experts": ("phimoe", {"rope_parameters": LONGROPE | MSCALE, "num_local_experts": 2}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC}),
}


def reference(kind: str, folder: Path) -> Any:
    """A model of four heads of 8, in ``folder`` and as transformers computes it."""
    architecture, fields = KINDS[kind]
    positions = TRAINED if kind == "dynamic" else LONGEST
    config = AutoConfig.for_model(
        architecture,
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        **{"initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **fields},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def logprobs(model: Any, ids: list[int]) -> np.ndarray:
    tokens = torch.tensor(ids)
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=tokens[None], use_cache=False).logits[0, :-1], -1)
    return log_p.gather(1, tokens[1:, None])[:, 0].numpy()


def ours(folder: Path, max_length: int, sequences: list[list[int]], packing: Any) -> list[np.ndarray]:
    wrapped = wrap_model(build_model(ModelSpec(path=str(folder), max_length=max_length), dtype=torch.float32), "lm")
    batch = SequenceBatch.from_lists(sequences)
    with torch.no_grad():
        found = compute_outputs(wrapped, MicroBatch.build(batch, packing=packing), ("logprobs",)).logprobs.numpy()
    return [found[a + 1 : b] for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_within_the_trained_length_each_sequence_is_what_it_is_by_itself(
    kind: str, packing: str, tmp_path: Path
) -> None:
    model = reference(kind, tmp_path)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(3, 50, n).tolist() for n in (5, TRAINED, 9)]
    for got, ids in zip(ours(tmp_path, TRAINED, sequences, packing), sequences, strict=True):
        np.testing.assert_allclose(got, logprobs(model, ids), atol=1e-5)


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_beyond_it_the_runs_longest_sequence_decides_for_all(kind: str, packing: str, tmp_path: Path) -> None:
    """A sequence of ``max_length`` tokens has transformers' log-probs; a shorter one those of its beginning."""
    model = reference(kind, tmp_path)
    draw = np.random.default_rng(0)
    whole = draw.integers(3, 50, 40).tolist()
    other = draw.integers(3, 50, 7).tolist()
    expected = logprobs(model, whole)
    for sequences in ([whole[:10]], [whole[:10], whole, other]):
        found = ours(tmp_path, 40, sequences, packing)
        np.testing.assert_allclose(found[0], expected[:9], atol=1e-5)
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    assert np.abs(expected[:9] - logprobs(model, whole[:10])).max() > 1e-2, "transformers has others for it alone"
