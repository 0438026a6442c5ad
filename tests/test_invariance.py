"""Ranks and micro-batches change nothing: the same first step, through the whole stack, for each kind of loss."""

import json

import numpy as np
import pytest
from support import metrics_of

pytestmark = pytest.mark.slow

ROLLOUTS = {
    "grpo": ["algorithm.kl.coefficient=0.1"],
    "grpo-sequence": ["algorithm.loss_reduction=sequence"],
    "gspo": ["algorithm.preset=gspo"],
    "cispo": ["algorithm.preset=cispo"],
    "reinforce++": ["algorithm.preset=reinforce++"],
}
OTHER_LAYOUT = ["backend.parallel.dp=2", "backend.max_tokens_per_microbatch=40"]


def first_step(rl, config, directory, overrides):
    rl("run", config, *overrides, "run.steps=1", f"run.directory={directory}")
    row = metrics_of(directory)[0]
    return [row["train/loss"], row["train/grad_norm"]]


@pytest.mark.parametrize("variant", ROLLOUTS)
def test_losses_on_rollouts_do_not_depend_on_the_layout(variant, tiny, rl, tmp_path):
    whole = first_step(rl, tiny, tmp_path / "whole", ROLLOUTS[variant])
    assert whole[1] > 1e-3
    other = first_step(rl, tiny, tmp_path / "other", [*ROLLOUTS[variant], *OTHER_LAYOUT])
    np.testing.assert_allclose(other[1], whole[1], rtol=1e-5)
    # The loss of a single on-policy update is a sum that nearly cancels: compared on the scale of its terms.
    np.testing.assert_allclose(other[0], whole[0], rtol=1e-5, atol=1e-6)


def test_the_reward_model_loss_does_not_depend_on_the_layout(tiny_sft, rl, tmp_path):
    rows = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    rm = ["algorithm={name: rm, pairs_per_step: 8, learning_rate: 1e-2, margin: 0.3, center_rewards_coefficient: 0.1}"]
    whole = first_step(rl, tiny_sft, tmp_path / "whole", rm)
    other = first_step(rl, tiny_sft, tmp_path / "other", [*rm, *OTHER_LAYOUT])
    np.testing.assert_allclose(other, whole, rtol=1e-5)
