"""Training: what FSDP2's own settings change, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
from fsdp2_helpers import train
from ranks import Ranks
from rl_core.model import reduce_metrics
from rl_torch.engine.testing.examples import WITH_ENTROPY, random_batch


@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, {"max_tokens_per_microbatch": 40}),
        (1, {"max_tokens_per_microbatch": 40, "packing": "packed"}),
        (1, {"packing": "packed"}),
        (1, {"kernels": "none", "activation_checkpointing": "selective"}),
        (1, {"packing": "padded", "logprob_chunk_tokens": 7}),
        (1, {"activation_checkpointing": True}),
        (2, {}),
        (2, {"max_tokens_per_microbatch": 40}),
        (2, {"packing": "packed", "max_tokens_per_microbatch": 90}),
        (2, {"packing": "padded", "activation_checkpointing": True}),
    ],
)
def test_loss_and_gradient_do_not_depend_on_ranks_microbatches_or_layout(
    single: Ranks, pair: Ranks, world: int, config: dict
) -> None:
    batch = random_batch(14)
    expected = reduce_metrics([r["results"][0] for r in single(train, batch=batch, loss=WITH_ENTROPY)])
    ranks = (single if world == 1 else pair)(train, batch=batch, loss=WITH_ENTROPY, config=config)
    assert reduce_metrics([r["results"][0] for r in ranks]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_bf16_computes_close_to_fp32_and_keeps_fp32_weights(single: Ranks, pair: Ranks, world: int) -> None:
    ranks = single if world == 1 else pair
    exact, rounded = (ranks(train, batch=random_batch(), config={"precision": p}) for p in ("fp32", "bf16"))
    a, b = (reduce_metrics([r["results"][0] for r in run])["loss"] for run in (exact, rounded))
    assert a != b
    assert b == pytest.approx(a, rel=1e-2)
    assert {w.dtype for w in rounded[0]["weights"].values()} == {np.dtype(np.float32)}
