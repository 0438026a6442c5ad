"""What is left out has no gradient: a step with and without it is the same step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_algo_grpo.advantages import token_advantages
from rl_algo_grpo.config import PRESETS, GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_core.zero_gradient import has_gradient

SIZES = {"prompts_per_step": 4, "group_size": 4, "minibatches": 4, "epochs": 2}
"""A minibatch is a group, so that some minibatches are skipped as a whole."""
NO_KL = {"kl": {"coefficient": 0.0}}
LENGTHS = {"dr_grpo": {"constant_length": 6}, "dapo": {"overlong": {"mode": "none"}}}
VARIANTS = {
    **{f"preset {name}": {"preset": name, **LENGTHS.get(name, {})} for name in PRESETS},
    "preset grpo without KL": {"preset": "grpo", **NO_KL},
    "preset rloo without KL": {"preset": "rloo", **NO_KL},
    "preset reinforce++-baseline without KL": {"preset": "reinforce++-baseline", **NO_KL},
    "one update": {"minibatches": 1, "epochs": 1},
    "one update by sequence": {"minibatches": 1, "epochs": 1, "loss_reduction": "sequence"},
    "cispo, held": {"preset": "cispo", "clip_high": 0.01},
    "dual clip": {"dual_clip": 1.01},
    "entropy bonus": {"entropy_coefficient": 0.1},
    "tis of sequences": {"mismatch": {"correction": "tis", "level": "sequence", "max": 1.05}},
    "icepop": {"mismatch": {"correction": "icepop", "low": 0.95, "high": 1.1}},
    "seq-mask": {"mismatch": {"correction": "seq-mask", "low": 0.95, "high": 1.05}},
    "without truncated": {"overlong": {"mode": "mask"}, "loss_reduction": "sequence"},
    "without truncated, with KL": {"overlong": {"mode": "mask"}, "kl": {"coefficient": 0.1}},
    "batch scale": {"advantage_scale": "batch"},
}
SKIPS_NOTHING = (
    "preset grpo",
    "preset rloo",
    "preset reinforce++",
    "preset reinforce++-baseline",
    "preset reinforce++-baseline without KL",  # whitened over tokens: the mean of the step is not that of a group
    "entropy bonus",
    "without truncated, with KL",
)
REWARDS = np.float32([[1, 1, 1, 1], [0, 1, 0.5, 0.5], [0, 0, 0, 0], [2, 0, 0, 1]])
"""Two groups have no gradient, and in another two completions are as good as the mean."""


def steps(tools, skip: bool, fields: dict, **model):
    """Metrics of two training steps and the weights after them, with Adam."""
    policy = tools.TinyModel(optimizer="adam", learning_rate=1e-3, **model)
    models = {"policy": policy, "reference": tools.TinyModel(seed=1, dtype=model.get("dtype", torch.float32))}
    algorithm = Grpo(GrpoConfig(name="grpo", **{**SIZES, **fields, "skip_zero_gradient": skip}))
    batch = tools.rollouts(policy, sequences=16, reward=REWARDS.ravel(), truncated=np.arange(16) % 5 == 0)
    # As in a conversation: something in the middle that the policy did not say.
    mask = batch.token_columns["loss_mask"].copy()
    mask[batch.offsets[1:][batch.lengths > 6] - 3] = 0.0
    batch = batch.with_columns(token={"loss_mask": mask})
    return [algorithm.step(batch, models) for _ in range(2)], policy


@pytest.mark.parametrize("variant", VARIANTS)
def test_skipping_changes_neither_loss_nor_gradient_nor_weights(tools, variant):
    """Everything at once is compared with micro-batches of what is left."""
    fields = VARIANTS[variant]
    expected, whole = steps(tools, False, fields, dtype=torch.float64)
    found, policy = steps(tools, True, fields, dtype=torch.float64, max_tokens=9)
    assert policy.calls.count("train") == whole.calls.count("train")
    for before, after in zip(expected, found, strict=True):
        same = {"train/loss", "train/grad_norm", "train/learning_rate", "rollout/advantage_zero_fraction"}
        if GrpoConfig(name="grpo", **{**SIZES, **fields}).loss in ("clip", "gspo"):
            same.add("policy/clip_fraction")
        assert set(after) == set(before)
        assert {n: after[n] for n in same} == pytest.approx({n: before[n] for n in same}, rel=1e-9, abs=1e-15)
    np.testing.assert_allclose(policy.weights(), whole.weights(), rtol=1e-9, atol=1e-15)
    skipped = [metrics["train/skipped_sequences_fraction"] for metrics in found]
    assert (skipped == [0.0, 0.0]) == (variant in SKIPS_NOTHING)
    assert [metrics["train/skipped_sequences_fraction"] for metrics in expected] == [0.0, 0.0]


def test_a_step_without_any_gradient_still_moves_the_optimizers_state(tools):
    """Adam goes on along its first moment: with equal rewards as well as with what is left of them."""
    moved = []
    for skip in (False, True):
        policy = tools.TinyModel(optimizer="adam", learning_rate=1e-2)
        algorithm = Grpo(GrpoConfig(name="grpo", prompts_per_step=2, group_size=4, skip_zero_gradient=skip))
        algorithm.step(tools.rollouts(policy), {"policy": policy})
        before = policy.weights()
        equal = tools.rollouts(policy, reward=np.full(8, 0.1, np.float32))
        metrics = algorithm.step(equal, {"policy": policy})
        assert (metrics["train/loss"], metrics["train/grad_norm"]) == (0.0, 0.0)
        assert metrics["train/skipped_sequences_fraction"] == (7 / 8 if skip else 0.0)
        assert all(np.isfinite(value) for value in metrics.values())
        moved.append(policy.weights() - before)
    assert np.abs(moved[0]).max() > 1e-3
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-5, atol=1e-9)


def seen(tools, **fields) -> tuple[list[int], list[str], float]:
    """Sequences that each update has to compute on, forward passes of the reference, and what the metric says."""
    policy, reference = tools.TinyModel(), tools.TinyModel(seed=1)
    batch = tools.rollouts(policy, sequences=16, reward=REWARDS.ravel(), truncated=np.arange(16) % 4 == 3)
    computed, outputs = [], policy.outputs

    def counted(part, names, temperature):
        computed.append(len(part))
        return outputs(part, names, temperature)

    policy.outputs = counted
    algorithm = Grpo(GrpoConfig(name="grpo", **{**SIZES, "epochs": 1, **fields}))
    metrics = algorithm.step(batch, {"policy": policy, "reference": reference})
    updates = computed[policy.calls.count("forward logprobs") :]
    return updates, reference.calls, metrics["train/skipped_sequences_fraction"]


def test_updates_are_computed_for_sequences_with_a_gradient(tools):
    assert seen(tools) == ([1, 2, 1, 4], [], 0.5)  # one is left of each group with equal rewards
    assert seen(tools, minibatches=1) == ([6], [], 10 / 16)
    assert seen(tools, minibatches=1, overlong={"mode": "mask"}) == ([5], [], 11 / 16)


@pytest.mark.parametrize("kl", [{"kl": {"coefficient": 0.1}}, {"kl": {"coefficient": 0.1, "in": "reward"}}])
def test_with_a_kl_every_sequence_has_a_gradient(tools, kl):
    assert seen(tools, **kl) == ([4] * 4, ["forward logprobs"], 0.0)


def test_with_an_entropy_bonus_every_sequence_has_a_gradient(tools):
    assert seen(tools, entropy_coefficient=0.1) == ([4] * 4, [], 0.0)


def test_a_loss_says_which_column_means_no_gradient():
    def column(**fields):
        return Grpo(GrpoConfig(name="grpo", **fields)).loss(1.0).zero_where

    assert column() == column(kl={"coefficient": 0.1, "in": "reward"}) == column(entropy_metric=True) == "advantages"
    assert column(kl={"coefficient": 0.1}) is column(entropy_coefficient=0.1) is None
    assert column(skip_zero_gradient=False) is None


def test_skipping_can_be_switched_off(tools):
    assert seen(tools, skip_zero_gradient=False) == ([4] * 4, [], 0.0)


def test_means_are_over_the_tokens_that_are_trained_on(tools):
    """As if the rest had never been sampled; only the fraction that is clipped is one of all tokens."""
    policy = tools.TinyModel(learning_rate=0.0)
    batch = tools.rollouts(policy, sequences=16, reward=REWARDS.ravel())
    fields = {"entropy_metric": True, "mismatch": {"correction": "icepop", "low": 0.95, "high": 1.1}}
    algorithm = Grpo(GrpoConfig(name="grpo", prompts_per_step=4, group_size=4, **fields))
    found = algorithm.step(batch, {"policy": policy})
    advantages = token_advantages(batch, REWARDS.ravel().astype(float), np.zeros(len(batch.tokens)), algorithm.config)
    whole = batch.with_columns(token={"advantages": advantages})
    trained = whole.select(has_gradient(whole, "advantages"))
    assert len(trained) == 6
    alone = policy.train(trained, algorithm.loss(1.0))
    names = ["policy/entropy", "mismatch/mean_w", "mismatch/kl_k3", "mismatch/masked_fraction"]
    assert {n: found[n] for n in names} == pytest.approx({n: alone[n] for n in names}, rel=1e-5)
    assert found["mismatch/max_abs_logprob_gap"] == alone["mismatch/max_abs_logprob_gap"]
    assert 0 < found["mismatch/masked_fraction"] < 1
