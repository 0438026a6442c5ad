from __future__ import annotations

import numpy as np
import pytest
from rl_algo_grpo.config import GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import Role
from rl_core.errors import RLError

VARIANTS = {
    "token": {},
    "sequence": {"loss_reduction": "sequence"},
    "constant": {"loss_reduction": "constant", "constant_length": 6},
    "gspo": {"loss": "gspo", "loss_reduction": "sequence", "epochs": 2},
    "cispo": {"loss": "cispo", "epochs": 2},
    "reinforce": {"loss": "reinforce", "loss_reduction": "constant", "constant_length": 1},
    "entropy bonus": {"entropy_coefficient": 0.1, "loss_reduction": "sequence"},
    "kl in reward": {"kl": {"coefficient": 0.1, "in": "reward"}, "advantage": "rloo"},
    "kl in loss": {"kl": {"coefficient": 0.1, "estimator": "k2"}},
    "reinforce++": {"advantage": "reinforce++", "kl": {"coefficient": 0.1, "in": "reward", "estimator": "k1"}},
    "reinforce++-baseline": {"advantage": "reinforce++-baseline"},
    "tis": {"mismatch": {"correction": "tis", "level": "sequence", "max": 1.05}},
    "icepop": {"mismatch": {"correction": "icepop", "low": 0.95, "high": 1.1}},
    "seq-mask": {"mismatch": {"correction": "seq-mask", "low": 0.95, "high": 1.05}},
    "overlong mask": {"overlong": {"mode": "mask"}},
}


def grpo(**fields) -> Grpo:
    return Grpo(GrpoConfig(name="grpo", **{"prompts_per_step": 2, "group_size": 4, **fields}))


def test_a_step_reports_these_metrics(tools, models):
    metrics = grpo().step(tools.rollouts(models["policy"]), models)
    assert sorted(metrics) == [
        "mismatch/kl_k3",
        "mismatch/max_abs_logprob_gap",
        "mismatch/mean_w",
        "policy/clip_fraction",
        "policy/max_ratio",
        "rollout/advantage_zero_fraction",
        "train/grad_norm",
        "train/learning_rate",
        "train/loss",
        "train/skipped_sequences_fraction",
    ]


def test_one_update_needs_no_forward_pass_for_the_old_policy(tools, models):
    metrics = grpo().step(tools.rollouts(models["policy"]), models)
    assert models["policy"].calls == ["train"]
    assert metrics["policy/max_ratio"] == 1.0
    assert metrics["policy/clip_fraction"] == 0.0


def test_several_updates_recompute_the_old_policy_once(tools, models):
    grpo(minibatches=2, epochs=3).step(tools.rollouts(models["policy"]), models)
    assert models["policy"].calls == ["forward logprobs"] + ["train"] * 6


def test_the_ratio_is_one_on_the_first_update_and_moves_afterwards(tools):
    still, moving = tools.TinyModel(learning_rate=0.0), tools.TinyModel(learning_rate=0.5)
    batch = tools.rollouts(still)
    at_rest = grpo(epochs=2).step(batch, {"policy": still})
    assert abs(np.log(at_rest["policy/max_ratio"])) < 1e-5
    assert grpo(epochs=2).step(batch, {"policy": moving})["policy/max_ratio"] > 1.001


def test_recomputing_the_old_policy_gives_the_same_gradient_as_the_shortcut(tools):
    first, second = tools.TinyModel(learning_rate=0.0), tools.TinyModel(learning_rate=0.0)
    batch = tools.rollouts(first)
    grpo().step(batch, {"policy": first})
    grpo(epochs=2).step(batch, {"policy": second})
    np.testing.assert_allclose(second.gradient(), first.gradient(), rtol=1e-4, atol=1e-7)


def test_equal_rewards_give_an_exactly_zero_gradient(tools, models):
    batch = tools.rollouts(models["policy"], reward=np.full(8, 0.1, np.float32))
    metrics = grpo().step(batch, models)
    assert metrics["train/loss"] == 0.0
    assert metrics["train/grad_norm"] == 0.0
    assert metrics["rollout/advantage_zero_fraction"] == 1.0
    assert not models["policy"].gradient().any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_learning_rate_of_zero_keeps_loss_kl_and_mismatch_constant(tools, variant):
    policy, reference = tools.TinyModel(learning_rate=0.0), tools.TinyModel(seed=1)
    algorithm = grpo(**{**VARIANTS[variant], "epochs": 2, "minibatches": 2})
    batch = tools.rollouts(policy, truncated=np.arange(8) % 3 == 0)
    first, *later = [algorithm.step(batch, {"policy": policy, "reference": reference}) for _ in range(3)]
    if algorithm.config.uses_reference:
        assert first["policy/kl_reference"] != 0
    for metrics in later:
        assert metrics == first


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_update_does_not_depend_on_micro_batches(tools, variant):
    import torch

    results = []
    for max_tokens in (10_000, 12, 1):
        policy = tools.TinyModel(max_tokens=max_tokens, dtype=torch.float64)
        models = {"policy": policy, "reference": tools.TinyModel(seed=1, dtype=torch.float64)}
        batch = tools.rollouts(policy, truncated=np.arange(8) % 3 == 0)
        metrics = grpo(**VARIANTS[variant]).step(batch, models)
        results.append((metrics, policy.gradient()))
    for metrics, gradient in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-6)
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", ["clip", "gspo", "cispo", "reinforce"])
def test_on_the_first_update_the_ratio_is_one_and_all_losses_agree(tools, loss):
    """At ρ = 1 nothing is clipped, and -A ρ has the gradient of -A log π."""
    still, reference = tools.TinyModel(learning_rate=0.0), tools.TinyModel(learning_rate=0.0)
    batch = tools.rollouts(still)
    metrics = grpo(loss=loss, epochs=2).step(batch, {"policy": still})
    assert abs(np.log(metrics["policy/max_ratio"])) < 1e-5
    assert metrics.get("policy/clip_fraction", 0.0) == 0.0
    grpo().step(batch, {"policy": reference})
    np.testing.assert_allclose(still.gradient(), reference.gradient(), rtol=1e-4, atol=1e-7)


def test_kl_in_the_reward_moves_advantages_and_stays_out_of_the_loss(tools):
    """Two completions with equal rewards: only the KL tells them apart, by the sum over their tokens."""
    policy, reference = tools.TinyModel(learning_rate=0.0), tools.TinyModel(seed=1)
    batch = tools.rollouts(policy, reward=np.zeros(8, np.float32))
    algorithm = grpo(kl={"coefficient": 0.5, "in": "reward", "estimator": "k1"}, advantage_scale="none")
    seen = {}

    class Recorder(tools.TinyModel):
        def train(self, batch, loss, **kwargs):
            seen.update(batch=batch, options=loss.options)
            return super().train(batch, loss, **kwargs)

    recorder = Recorder(learning_rate=0.0)
    metrics = algorithm.step(batch, {"policy": recorder, "reference": reference})
    assert recorder.calls == ["forward logprobs", "train"]
    assert seen["options"]["kl_coefficient"] == 0.0

    mask = batch.token_columns["loss_mask"]
    kl = (policy.forward(batch)["logprobs"] - reference.forward(batch)["logprobs"]) * mask
    costs = -0.5 * np.bincount(batch.sequence_ids, weights=kl)
    expected = costs - np.repeat(costs.reshape(2, 4).mean(1), 4)
    assert seen["batch"].token_columns["advantages"] == pytest.approx(expected[batch.sequence_ids], rel=1e-4, abs=1e-6)
    assert metrics["policy/kl_reference"] == pytest.approx(kl.sum() / mask.sum(), rel=1e-5)
    assert metrics["rollout/advantage_zero_fraction"] == 0.0


def test_reinforce_plus_plus_gives_every_token_its_own_advantage(tools):
    seen = []

    class Recorder(tools.TinyModel):
        def train(self, batch, loss, **kwargs):
            seen.append(batch)
            return super().train(batch, loss, **kwargs)

    algorithm = grpo(advantage="reinforce++", kl={"coefficient": 0.5, "in": "reward", "estimator": "k1"})
    batch = tools.rollouts(tools.TinyModel())
    algorithm.step(batch, {"policy": Recorder(), "reference": tools.TinyModel(seed=1)})
    columns = seen[0].token_columns
    chosen = columns["advantages"][columns["loss_mask"] != 0]
    assert chosen.mean() == pytest.approx(0.0, abs=1e-6)
    assert chosen.std() == pytest.approx(1.0, rel=1e-4)
    assert len(np.unique(chosen)) > 8
    assert not columns["advantages"][columns["loss_mask"] == 0].any()


def test_long_completions_lose_reward(tools):
    seen = []

    class Recorder(tools.TinyModel):
        def train(self, batch, loss, **kwargs):
            seen.append(batch)
            return super().train(batch, loss, **kwargs)

    batch = tools.rollouts(tools.TinyModel(), reward=np.ones(8, np.float32))
    algorithm = grpo(overlong={"mode": "shape", "max_tokens": 6, "buffer_tokens": 4}, advantage_scale="none")
    metrics = algorithm.step(batch, {"policy": Recorder()})
    lengths = np.bincount(batch.sequence_ids, weights=batch.token_columns["loss_mask"])
    penalty = np.array([0, 0, 0, -0.25, -0.5, -0.75, -1.0])[lengths.astype(int)]
    assert metrics["rollout/overlong_penalty"] == pytest.approx(penalty.mean())
    expected = penalty - np.repeat(penalty.reshape(2, 4).mean(1), 4)
    assert seen[0].token_columns["advantages"] == pytest.approx(expected[batch.sequence_ids], abs=1e-6)


def test_truncated_completions_are_compared_with_but_not_trained_on(tools):
    policy = tools.TinyModel(learning_rate=0.0)
    truncated = np.arange(8) == 2
    batch = tools.rollouts(policy, truncated=truncated)
    grpo(overlong={"mode": "mask"}).step(batch, {"policy": policy})
    masked = policy.gradient()

    # The same by hand: advantages of all eight, loss over the other seven.
    rewards = batch.sequence_columns["reward"].astype(np.float64).reshape(2, 4)
    advantages = ((rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, ddof=1, keepdims=True)).reshape(8)
    rest = batch.with_columns(token={"advantages": advantages[batch.sequence_ids].astype(np.float32)}).select(
        ~truncated
    )
    policy.train(rest, grpo().loss(1.0))
    np.testing.assert_allclose(masked, policy.gradient(), rtol=1e-4, atol=1e-7)


def test_a_step_of_truncated_completions_only_changes_nothing(tools):
    policy = tools.TinyModel(learning_rate=0.5)
    before = [p.detach().clone() for p in policy.parameters]
    batch = tools.rollouts(policy, truncated=np.ones(8, bool))
    metrics = grpo(overlong={"mode": "mask"}).step(batch, {"policy": policy})
    assert metrics["train/loss"] == 0.0
    assert all(np.isfinite(value) for value in metrics.values())
    assert all((a == b).all() for a, b in zip(before, policy.parameters, strict=True))


def test_groups_with_different_rewards_are_kept(tools, models):
    rewards = np.array([0.1] * 4 + [0, 0, 1, 0], np.float32)
    batch = tools.rollouts(models["policy"], reward=rewards)
    assert grpo(dynamic_sampling=True).keep(batch).tolist() == [False] * 4 + [True] * 4


def test_a_step_with_fewer_sequences_than_minibatches_takes_fewer_updates(tools, models):
    batch = tools.rollouts(models["policy"]).select([0, 1, 2])
    grpo(minibatches=8).step(batch, models)
    assert models["policy"].calls == ["forward logprobs"] + ["train"] * 3


def test_a_correction_reports_what_it_masks(tools, models):
    batch = tools.rollouts(models["policy"])
    masking = grpo(mismatch={"correction": "icepop", "low": 0.95, "high": 1.05}).step(batch, models)
    assert 0 < masking["mismatch/masked_fraction"] < 1
    for mismatch in ({"correction": "tis"}, {"correction": "none"}):
        assert "mismatch/masked_fraction" not in grpo(mismatch=mismatch).step(batch, models)


def test_the_entropy_bonus_raises_the_entropy(tools):
    policy = tools.TinyModel(learning_rate=0.5)
    batch = tools.rollouts(policy, reward=np.zeros(8, np.float32))
    algorithm = grpo(entropy_coefficient=1.0)
    history = [algorithm.step(batch, {"policy": policy})["policy/entropy"] for _ in range(20)]
    assert history[-1] > history[0] + 0.01
    assert history[-1] <= np.log(12) + 1e-6


def test_the_reference_is_asked_for_only_when_the_kl_term_is_on():
    policy, reference = Role("policy", trainable=True), Role("reference", trainable=False)
    assert tuple(grpo().roles()) == (policy,)
    assert tuple(grpo(kl={"coefficient": 0.01}).roles()) == (policy, reference)


def test_the_kl_to_an_identical_reference_is_zero(tools, models):
    both = {**models, "reference": tools.TinyModel()}
    metrics = grpo(kl={"coefficient": 0.1}).step(tools.rollouts(models["policy"]), both)
    assert metrics["policy/kl_reference"] == pytest.approx(0.0, abs=1e-6)


def test_the_kl_term_pulls_the_policy_back_to_the_reference(tools):
    reference, policy = tools.TinyModel(seed=1), tools.TinyModel(learning_rate=0.5)
    batch = tools.rollouts(policy, reward=np.zeros(8, np.float32))
    algorithm = grpo(kl={"coefficient": 1.0, "estimator": "k2"})
    history = [
        algorithm.step(batch, {"policy": policy, "reference": reference})["policy/kl_reference"] for _ in range(20)
    ]
    assert history[-1] < 0.2 * history[0]


def test_log_probs_are_taken_at_the_sampling_temperature(tools, models):
    hot = np.full(8, 0.5, np.float32)
    batch = tools.rollouts(models["policy"], temperature=hot)
    algorithm = grpo()
    right = algorithm.step(batch, {"policy": tools.TinyModel(learning_rate=0.0)})
    wrong = algorithm.step(
        batch.with_columns(sequence={"temperature": np.ones(8, np.float32)}),
        {"policy": tools.TinyModel(learning_rate=0.0)},
    )
    assert right["mismatch/max_abs_logprob_gap"] < 0.4  # the noise that was added to the sampler's log-probs
    assert wrong["mismatch/max_abs_logprob_gap"] > right["mismatch/max_abs_logprob_gap"]


def test_completions_sampled_at_different_temperatures_are_refused(tools, models):
    batch = tools.rollouts(models["policy"], temperature=np.repeat([0.5, 1.0], 4).astype(np.float32))
    with pytest.raises(RLError) as error:
        grpo().step(batch, models)
    assert str(error.value) == (
        "a step's completions were sampled at different temperatures (0.5 to 1); log-probs can be computed at one only"
    )


def test_metrics_of_several_updates_are_means_and_maxima(tools):
    class Recorder(tools.TinyModel):
        def train(self, *args, **kwargs):
            seen.append(super().train(*args, **kwargs))
            return seen[-1]

    seen: list[dict[str, float]] = []
    policy = Recorder(learning_rate=0.5)
    metrics = grpo(epochs=2, minibatches=2).step(tools.rollouts(policy), {"policy": policy})
    assert len(seen) == 4
    assert metrics["train/loss"] == pytest.approx(np.mean([m["loss"] for m in seen]))
    assert metrics["policy/clip_fraction"] == pytest.approx(np.mean([m["policy/clip_fraction"] for m in seen]))
    assert metrics["policy/max_ratio"] == max(m["policy/max_ratio"] for m in seen)


def test_the_batch_given_to_step_is_left_as_it_was(tools, models):
    batch = tools.rollouts(models["policy"])
    before = {name: column.copy() for name, column in batch.token_columns.items()}
    for column in (*batch.token_columns.values(), *batch.sequence_columns.values()):
        column.setflags(write=False)  # as it comes out of the object store
    grpo(epochs=2).step(batch, models)
    assert list(batch.token_columns) == list(before)


def test_the_plan_says_how_many_optimizer_steps_a_step_has():
    plan = grpo(minibatches=2, epochs=3).plan()
    assert (plan.input, plan.rows_per_step, plan.group_size, plan.optimizer_steps) == ("rollouts", 2, 4, 6)
    assert plan.notes == ()
    assert grpo().plan().notes == ("one update per step: the ratio to the old policy is 1, so clipping never acts",)


def test_the_optimizer_gets_the_algorithms_learning_rate():
    spec = grpo(learning_rate=3e-4, optimizer={"warmup_steps": 5}).optimizer("policy", 70)
    assert (spec.learning_rate, spec.warmup_steps, spec.total_steps) == (3e-4, 5, 70)


def test_there_is_no_loss_on_data_rows(models):
    empty = SequenceBatch.from_lists([])
    with pytest.raises(RLError, match=r"^algorithm grpo trains on rollouts; it has no loss on data rows$"):
        grpo().encode([], None)
    with pytest.raises(
        RLError, match=r"^algorithm grpo trains on rollouts; it has no held-out loss, use an evaluator that generates$"
    ):
        grpo().evaluate(empty, models)
