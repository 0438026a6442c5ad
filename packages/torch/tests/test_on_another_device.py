"""Log-probs and losses that are not on the CPU: intermediate tensors are made on the same device.

PyTorch's meta device stands for a GPU here: its tensors have no numbers, and most operations refuse to mix it with the
CPU as a GPU's do (all but reading at CPU indices).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rl_algo_common.losses import clipped_surrogate, corrected, reduce_tokens
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_torch import varlen
from rl_torch.logprobs import token_outputs
from rl_torch.losses import LossBatch, MetricSums, TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.policy import in_batch_order
from torch import Tensor

LENGTHS = (5, 9, 2)
OUTPUTS = ("logprobs", "entropy", "mean_logprobs", "logsumexp")


def batch() -> SequenceBatch:
    columns = ("loss_mask", "advantages", "sampled_logprobs")
    return SequenceBatch.from_lists(
        [np.zeros(n, np.int32) for n in LENGTHS],
        token_columns={name: [np.ones(n, np.float32) for n in LENGTHS] for name in columns},
    )


def answers(chunk_tokens: int | None = None) -> tuple[TokenOutputs, Tensor]:
    """What a head says about the batch, and the hidden states it says that of."""
    micro = MicroBatch.build(batch(), packing="packed", device="meta")
    hidden = torch.empty(len(micro.predictors), 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(64, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    found = token_outputs(hidden, weight, micro.targets, outputs=OUTPUTS, chunk_tokens=chunk_tokens)
    return in_batch_order(found, micro), hidden


@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_log_probs_and_their_gradients_leave_nothing_on_the_cpu(chunk_tokens: int | None) -> None:
    outputs, hidden = answers(chunk_tokens)
    values = [getattr(outputs, name) for name in OUTPUTS]
    assert {x.device.type for x in values} == {"meta"}
    assert {x.dtype for x in values} == {torch.float32}, "what losses see has full precision"
    torch.stack(values).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.device.type == "meta"


def test_a_policy_loss_leaves_nothing_on_the_cpu() -> None:
    (outputs, _), columns = answers(), LossBatch(batch(), device="meta")
    assert outputs.logprobs is not None
    mask, gap = columns["loss_mask"], outputs.logprobs - columns["sampled_logprobs"]
    per_token, _, _ = clipped_surrogate(gap, columns["advantages"], clip_low=0.2, clip_high=0.2)
    scale = Scale(tokens=16.0, sequences=3.0, units=3.0)
    total, metrics = corrected(
        per_token, gap, mask, outputs, scale, correction="icepop", level="sequence", low=0.5, high=2.0
    )
    loss = reduce_tokens(total, mask, outputs, scale, reduction="sequence", constant_length=None)
    assert {x.device.type for x in (loss, *metrics.values())} == {"meta"}


def test_a_maximum_of_a_number_and_a_tensor_is_taken_where_the_tensor_is() -> None:
    sums = MetricSums()
    sums.add({"policy/max_ratio": 0.5})
    sums.add({"policy/max_ratio": torch.ones((), device="meta")})
    sums.add({"policy/max_ratio": 0.25})  # two tensors of one device, or PyTorch would have refused
    with pytest.raises(RuntimeError, match="meta"):  # it stayed there until it is asked for
        sums.result()


def older_varlen_attn(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, _: Tensor, longest: int, __: int, *, scale: Any, window_size: Any
) -> Tensor:
    """As in PyTorch 2.11, which wants as many heads of keys as of queries."""
    assert q.shape == k.shape == v.shape
    return varlen._one_by_one(q, k, v, varlen.Segments(bounds, longest), None, scale=scale)


def test_flash_attention_of_a_pytorch_without_shared_keys_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(16, heads, 8, generator=generator) for heads in (4, 2, 2))
    segments = varlen.Segments(torch.tensor([0, 5, 14, 16], dtype=torch.int32), 9)
    expected = varlen._one_by_one(q, k, v, segments, None, scale=None)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older_varlen_attn)
    torch.testing.assert_close(varlen._flash(q, k, v, segments, None, None), expected, atol=1e-6, rtol=1e-6)
