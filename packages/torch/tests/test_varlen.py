"""Attention inside segments against the dense mask that transformers builds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import PolicyModel, compute_outputs
from rl_torch.varlen import Segments, attention, supports_varlen_attention, use_varlen_attention
from transformers import DogeConfig, DogeForCausalLM, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)


def batch(count: int = 7) -> SequenceBatch:
    rng = np.random.default_rng(0)
    return SequenceBatch.from_lists([rng.integers(0, 64, n) for n in rng.integers(2, 40, count)])


def micro_batch(packing: str) -> MicroBatch:
    return MicroBatch.build(batch(), packing=packing)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_segments_begin_where_positions_restart(packing: str) -> None:
    micro = micro_batch(packing)
    segments = Segments.of(micro)
    rows, width = micro.input_ids.shape
    assert segments.bounds[0] == 0
    assert segments.bounds[-1] == rows * width
    begins = set(segments.bounds[:-1].tolist())
    firsts = micro.last - torch.from_numpy(batch().lengths) + 1
    assert set(firsts.tolist()) <= begins
    assert segments.longest == int(segments.bounds.diff().max())


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize(("architecture", "extra"), [("qwen3", {}), ("mistral", {"sliding_window": 6})])
def test_log_probs_and_gradients_equal_those_under_a_dense_mask(packing: str, architecture: str, extra: dict) -> None:
    init = {"architecture": architecture, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "extra": extra}
    spec = ModelSpec(init=init, vocab_size=64, max_length=64)
    found = []
    for varlen in (False, True):
        model = PolicyModel(build_model(spec, dtype=torch.float32))
        micro = micro_batch(packing)
        if varlen:
            use_varlen_attention(model.model)
        outputs = compute_outputs(model, micro, ("logprobs",), **({"segments": Segments.of(micro)} if varlen else {}))
        outputs.logprobs.square().sum().backward()
        found.append([outputs.logprobs.detach(), *(p.grad for p in model.parameters())])
    for dense, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, dense, atol=2e-5, rtol=1e-4)


def test_a_forward_pass_without_segments_is_refused() -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError) as caught:
        attention(None, x, x, x, None)
    assert str(caught.value) == "variable-length attention needs the segments of the micro-batch"


def test_a_model_whose_layers_make_their_own_mask_keeps_it() -> None:
    """Doge's mask carries learned scores; as they are initialised they are all equal, so that only gradients differ."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    for made, supported in (
        (LlamaForCausalLM(LlamaConfig(**sizes)), True),
        (DogeForCausalLM(DogeConfig(**sizes)), False),
    ):
        assert supports_varlen_attention(made.eval()) is supported
