"""Ranks and micro-batches change nothing, through the whole stack: rollouts, rewards, the trainer's fan-out and all.

Every single loss is compared over ranks in test_losses_over_ranks.py.
"""

import numpy as np
import pytest
from support import metrics_of

pytestmark = pytest.mark.slow

OTHER_LAYOUT = ["backend.parallel.dp=2", "backend.max_tokens_per_microbatch=40"]


def first_step(rl, config, directory, overrides):
    rl("run", config, *overrides, "run.steps=1", f"run.directory={directory}")
    row = metrics_of(directory)[0]
    return [row["train/loss"], row["train/grad_norm"]]


def test_a_step_on_rollouts_does_not_depend_on_the_layout(tiny, rl, tmp_path):
    kl = ["algorithm.kl.coefficient=0.1"]
    whole = first_step(rl, tiny, tmp_path / "whole", kl)
    assert whole[1] > 1e-3
    other = first_step(rl, tiny, tmp_path / "other", [*kl, *OTHER_LAYOUT])
    np.testing.assert_allclose(other[1], whole[1], rtol=1e-5)
    # The loss of a single on-policy update is a sum that nearly cancels: compared on the scale of its terms.
    np.testing.assert_allclose(other[0], whole[0], rtol=1e-5, atol=1e-6)
