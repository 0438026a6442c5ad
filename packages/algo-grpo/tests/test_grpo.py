from __future__ import annotations

import numpy as np
import pytest
from rl_algo_grpo.config import GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import Role
from rl_core.errors import RLError


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
    ]


def test_one_update_needs_no_forward_pass_for_the_old_policy(tools, models):
    metrics = grpo().step(tools.rollouts(models["policy"]), models)
    assert models["policy"].calls == ["train"]
    assert metrics["policy/max_ratio"] == 1.0
    assert metrics["policy/clip_fraction"] == 0.0


def test_several_updates_recompute_the_old_policy_once(tools, models):
    grpo(minibatches=2, epochs=3).step(tools.rollouts(models["policy"]), models)
    assert models["policy"].calls == ["forward"] + ["train"] * 6


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


def test_a_learning_rate_of_zero_keeps_loss_kl_and_mismatch_constant(tools):
    policy, reference = tools.TinyModel(learning_rate=0.0), tools.TinyModel(seed=1)
    algorithm = grpo(kl={"coefficient": 0.1}, epochs=2, minibatches=2)
    batch = tools.rollouts(policy)
    first, *later = [algorithm.step(batch, {"policy": policy, "reference": reference}) for _ in range(3)]
    assert first["policy/kl_reference"] > 0
    for metrics in later:
        assert metrics == first


@pytest.mark.parametrize("loss_reduction", ["token", "sequence", "constant"])
def test_the_update_does_not_depend_on_micro_batches(tools, loss_reduction):
    import torch

    options = {"loss_reduction": loss_reduction, "kl": {"coefficient": 0.1}, "entropy_metric": True}
    if loss_reduction == "constant":
        options["constant_length"] = 6
    results = []
    for max_tokens in (10_000, 12, 1):
        policy = tools.TinyModel(max_tokens=max_tokens, dtype=torch.float64)
        models = {"policy": policy, "reference": tools.TinyModel(seed=1, dtype=torch.float64)}
        metrics = grpo(**options).step(tools.rollouts(policy), models)
        results.append((metrics, policy.gradient()))
    for metrics, gradient in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-6)
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-6, atol=1e-12)


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


def sample_answers(policy, prompts: np.ndarray, rng: np.random.Generator) -> SequenceBatch:
    """One sampled token after each one-token prompt, with the log-probs it had."""
    import torch

    questions = SequenceBatch.from_lists([[p] for p in prompts])
    with torch.no_grad():
        logprobs = torch.log_softmax(torch.stack([x[-1] for x in policy.logits(questions)]), -1).numpy()
    noise = rng.gumbel(size=logprobs.shape)
    answers = np.argmax(logprobs + noise, axis=1)
    rows = np.arange(len(prompts))
    return SequenceBatch.from_lists(
        list(np.stack([prompts, answers], 1)),
        token_columns={
            "loss_mask": [np.array([0, 1], np.float32)] * len(prompts),
            "sampled_logprobs": [np.array([0, v], np.float32) for v in logprobs[rows, answers]],
        },
    )


@pytest.mark.parametrize("fields", [{}, {"epochs": 2, "minibatches": 2, "advantage_scale": "none"}])
def test_it_learns_to_answer_a_small_bandit(tools, fields):
    """Four prompts, twelve answers, reward 1 for answer = 2 · prompt + 1: chance is 8 %."""
    policy = tools.TinyModel(optimizer="adam", learning_rate=0.02)
    algorithm = grpo(prompts_per_step=4, group_size=8, **fields)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(60):
        prompts = np.repeat(np.arange(4), 8)
        batch = sample_answers(policy, prompts, rng)
        reward = (batch.tokens[1::2] == 2 * prompts + 1).astype(np.float32)
        algorithm.step(batch.with_columns(sequence={"group": prompts, "reward": reward}), {"policy": policy})
        means.append(reward.mean())
    assert np.mean(means[:5]) < 0.3
    assert np.mean(means[-5:]) > 0.95
