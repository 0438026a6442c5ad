"""Completions without a gradient are skipped exactly, in float32 with AdamW: micro-batches, one rank and two."""

from __future__ import annotations

import numpy as np
import pytest
from loss_models import MAX_LENGTH, SHAPE, VOCAB
from ranks import Ranks
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from zero_gradient_steps import compare

pytestmark = pytest.mark.slow

TOLERANCE = 1e-6
SIZES = {"prompts_per_step": 4, "group_size": 4, "minibatches": 4}
"""A minibatch is a group; of two of them everything is skipped."""
REWARDS = np.float32([[0, 1, 0.5, 0.5], [1, 1, 1, 1], [0, 0, 0, 0], [2, 0, 0, 1]])
VARIANTS = {
    "token": {**SIZES},
    "sequence, one update of a varied and an equal group": {**SIZES, "minibatches": 2, "loss_reduction": "sequence"},
    "constant": {**SIZES, "loss_reduction": "constant", "constant_length": 9, "mismatch": {"correction": "tis"}},
    "gspo": {**SIZES, "preset": "gspo"},
    "cispo": {**SIZES, "preset": "cispo"},
    "one update": {**SIZES, "minibatches": 1, "overlong": {"mode": "mask"}},
}
LAYOUTS = {
    "one rank, micro-batches": (1, {"max_tokens_per_microbatch": 20}),
    "one rank, packed rows": (1, {"packing": "packed"}),
    "two ranks, micro-batches": (2, {"max_tokens_per_microbatch": 20}),
}


def rollouts() -> SequenceBatch:
    rng = np.random.default_rng(0)
    prompts, completions = rng.integers(1, 6, 16), rng.integers(2, 10, 16)
    masks = [np.repeat(np.float32([0, 1]), pair) for pair in zip(prompts, completions, strict=True)]
    masks[0][-2] = masks[13][-2] = 0.0  # said by an environment
    return SequenceBatch.from_lists(
        [rng.integers(0, VOCAB, len(mask)) for mask in masks],
        token_columns={"loss_mask": masks},
        sequence_columns={
            "group": np.repeat(np.arange(4), 4),
            "reward": REWARDS.ravel(),
            "truncated": np.arange(16) % 5 == 4,
        },
    )


@pytest.fixture(scope="module")
def by_layout():
    """Metrics and weights by layout, variant and ``skip_zero_gradient``."""
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    spec = ModelSpec(init=SHAPE, seed=3, vocab_size=VOCAB, max_length=MAX_LENGTH, special_tokens=special)
    ranks = Ranks(2)
    try:
        for world, config in LAYOUTS.values():
            ranks.start(compare, world, variants=VARIANTS, spec=spec, batch=rollouts(), config=config)
        return {layout: ranks.results()[0] for layout in LAYOUTS}
    finally:
        ranks.close()


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Norm of the difference over that of ``b``."""
    both = [(a[name].astype(np.float64), b[name].astype(np.float64)) for name in b]
    return np.sqrt(sum(((x - y) ** 2).sum() for x, y in both) / sum((y**2).sum() for _, y in both))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_skipping_changes_nothing_on_any_number_of_ranks(by_layout, layout, variant):
    steps, weights = by_layout[layout][variant, True]
    expected_steps, expected_weights = by_layout[layout][variant, False]
    for found, expected in zip(steps, expected_steps, strict=True):
        assert expected["train/grad_norm"] > 0.01
        assert found["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=TOLERANCE)
        # A sum of terms of about 1, which may nearly cancel.
        assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=TOLERANCE, abs=TOLERANCE)
        assert found["train/skipped_sequences_fraction"] >= 0.5
        assert expected["train/skipped_sequences_fraction"] == 0.0
    assert distance(weights, expected_weights) < TOLERANCE


def test_ranks_and_packing_do_not_matter_to_what_is_skipped(by_layout):
    one, *others = by_layout.values()
    for variant in VARIANTS:
        for other in others:
            assert distance(other[variant, True][1], one[variant, True][1]) < 1e-5, variant
