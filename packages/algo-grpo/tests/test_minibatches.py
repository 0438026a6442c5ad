"""What is left out has no gradient: a step with and without it is the same step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_algo_grpo.config import GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_algo_grpo.minibatches import Minibatch, has_gradient
from rl_algo_grpo.presets import PRESETS
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale

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


class Watcher:
    """Writes down how many sequences each call is about."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def forward(self, batch, *args, **kwargs):
        self.seen.append(("forward", len(batch)))
        return self.model.forward(batch, *args, **kwargs)

    def train(self, batch, *args, **kwargs):
        self.seen.append(("train", len(batch)))
        return self.model.train(batch, *args, **kwargs)


def seen(tools, **fields) -> tuple[list, list, float]:
    policy, reference = Watcher(tools.TinyModel()), Watcher(tools.TinyModel(seed=1))
    batch = tools.rollouts(policy.model, sequences=16, reward=REWARDS.ravel(), truncated=np.arange(16) % 4 == 3)
    algorithm = Grpo(GrpoConfig(name="grpo", **{**SIZES, "epochs": 1, **fields}))
    metrics = algorithm.step(batch, {"policy": policy, "reference": reference})
    return policy.seen, reference.seen, metrics["train/skipped_sequences_fraction"]


def test_old_log_probs_and_updates_are_computed_for_sequences_with_a_gradient(tools):
    minibatches = [("train", n) for n in (1, 2, 1, 4)]  # one is left of each group with equal rewards
    assert seen(tools) == ([("forward", 8), *minibatches], [], 0.5)
    assert seen(tools, minibatches=1) == ([("train", 6)], [], 10 / 16)


def test_with_a_kl_or_entropy_term_only_masked_completions_are_skipped(tools):
    kl, mask = {"kl": {"coefficient": 0.1}}, {"overlong": {"mode": "mask"}}
    everything = [("forward", 16), *[("train", 4)] * 4]
    assert seen(tools, **kl) == (everything, [("forward", 16)], 0.0)
    assert seen(tools, entropy_coefficient=0.1) == (everything, [], 0.0)
    rest = [("forward", 12), *[("train", 3)] * 4]
    assert seen(tools, **kl, **mask) == (rest, [("forward", 12)], 0.25)
    assert seen(tools, entropy_coefficient=0.1, **mask) == (rest, [], 0.25)


def test_a_kl_in_the_reward_needs_the_log_probs_of_all_completions(tools):
    policy, reference, skipped = seen(tools, kl={"coefficient": 0.1, "in": "reward"})
    assert (policy, reference) == ([("forward", 16), *[("train", 4)] * 4], [("forward", 16)])
    assert skipped == 0.0


def test_skipping_can_be_switched_off(tools):
    assert seen(tools, skip_zero_gradient=False) == ([("forward", 16), *[("train", 4)] * 4], [], 0.0)


def test_means_are_over_the_tokens_that_are_trained_on(tools):
    """As if the rest had never been sampled; only the fraction that is clipped is one of all tokens."""
    policy = tools.TinyModel(learning_rate=0.0)
    batch = tools.rollouts(policy, sequences=16, reward=REWARDS.ravel())
    fields = {"entropy_metric": True, "mismatch": {"correction": "icepop", "low": 0.95, "high": 1.1}}
    algorithm = Grpo(GrpoConfig(name="grpo", prompts_per_step=4, group_size=4, **fields))
    found = algorithm.step(batch, {"policy": policy})
    trained_rows = [4, 5, 12, 13, 14, 15]
    advantages = algorithm.advantages(batch, REWARDS.ravel().astype(float), np.zeros(len(batch.tokens)))
    trained = batch.with_columns(token={"advantages": advantages}).select(trained_rows)
    alone = policy.train(trained, algorithm.loss(1.0))
    names = ["policy/entropy", "mismatch/mean_w", "mismatch/kl_k3", "mismatch/masked_fraction"]
    assert {n: found[n] for n in names} == pytest.approx({n: alone[n] for n in names}, rel=1e-5)
    assert found["mismatch/max_abs_logprob_gap"] == alone["mismatch/max_abs_logprob_gap"]
    assert 0 < found["mismatch/masked_fraction"] < 1


def batch_of(masks, advantages) -> SequenceBatch:
    return SequenceBatch.from_lists(
        [np.zeros(len(mask), np.int32) for mask in masks],
        token_columns={"loss_mask": [np.float32(m) for m in masks], "advantages": [np.float32(a) for a in advantages]},
    )


BATCH = batch_of(
    masks=[[0, 1, 1], [0, 1], [0, 0, 0], [0, 1, 0]],
    advantages=[[0, 0, 0], [0, -0.5], [9, 9, 9], [0, 0, 9]],
)


def test_a_sequence_has_a_gradient_if_a_token_in_the_mask_has_an_advantage():
    assert has_gradient(BATCH, always_on=False).tolist() == [False, True, False, False]
    assert has_gradient(BATCH, always_on=True).tolist() == [True, True, False, True]


def test_a_minibatch_keeps_the_counts_of_the_sequences_it_leaves_out():
    minibatch = Minibatch.of(BATCH, skip=True, always_on=False)
    assert (len(minibatch.batch), minibatch.skipped) == (1, 3)
    assert minibatch.scale == Scale(tokens=4.0, sequences=4.0, units=4.0)
    metrics = {"loss": 1.0, "policy/entropy": 0.5, "policy/max_ratio": 2.0, "policy/clip_fraction": 0.125}
    spread = minibatch.over_trained_tokens(metrics, zero_where_skipped=frozenset({"policy/clip_fraction"}))
    assert spread == {"loss": 1.0, "policy/entropy": 2.0, "policy/max_ratio": 2.0, "policy/clip_fraction": 0.125}


def test_of_a_minibatch_without_gradient_the_shortest_completion_is_left():
    minibatch = Minibatch.of(BATCH.select([2, 0, 3]), skip=True, always_on=False)
    assert minibatch.batch.token_columns["loss_mask"].tolist() == [0, 1, 1]
    masked = Minibatch.of(BATCH.select([2]), skip=True, always_on=True)
    assert (len(masked.batch), masked.scale.tokens) == (1, 0.0)
    assert masked.over_trained_tokens({"policy/entropy": 0.0}, zero_where_skipped=frozenset()) == {
        "policy/entropy": 0.0
    }
