"""A step of the algorithm on tiny transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rl_algo_ppo.config import PpoConfig
from rl_algo_ppo.ppo import Ppo
from rl_core.contracts.model import Role
from rl_core.errors import RLError


def ppo(**fields) -> Ppo:
    return Ppo(PpoConfig(name="ppo", **{"prompts_per_step": 8, "minibatches": 2, **fields}))


class Recorder:
    """Keeps the mini-batches a model is trained on."""

    def __init__(self, model):
        self._model, self.batches = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def train(self, batch, loss):
        self.batches.append(batch)
        return self._model.train(batch, loss)


def test_a_step_reports_these_metrics(tools, models):
    metrics = ppo(entropy_metric=True).step(tools.rollouts(models["policy"]), models)
    assert sorted(metrics) == [
        "mismatch/kl_k3",
        "mismatch/max_abs_logprob_gap",
        "mismatch/mean_w",
        "policy/clip_fraction",
        "policy/entropy",
        "policy/max_ratio",
        "train/grad_norm",
        "train/learning_rate",
        "train/loss",
        "train/skipped_sequences_fraction",
        "train/value_grad_norm",
        "train/value_learning_rate",
        "train/value_loss",
        "value/clip_fraction",
        "value/explained_variance",
    ]


def test_skipping_completions_without_a_gradient_changes_no_step(tools):
    """Of four completions nothing is left: their rewards, and the values of a head that is zero, are 0."""
    after = []
    for skip in (False, True):
        models = {"policy": tools.TinyModel(dtype=torch.float64), "value": tools.TinyModel("scalar")}
        torch.nn.init.zeros_(models["value"].model.model.score.weight)
        batch = tools.rollouts(models["policy"], reward=np.float32([1, 0, 0, -1, 0, 2, 0, 1]))
        algorithm = ppo(whiten_advantages=False, skip_zero_gradient=skip, loss_reduction="sequence")
        metrics = algorithm.step(batch, models)
        assert metrics.pop("train/skipped_sequences_fraction", 0.0) == (0.5 if skip else 0.0)
        after.append((metrics, models["policy"].weights(), models["value"].weights()))
    (expected, *weights), (found, *weights_skipped) = after
    same = ["train/loss", "train/grad_norm", "train/value_loss", "train/value_grad_norm", "policy/clip_fraction"]
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, rel=1e-5)
    for a, b in zip(weights_skipped, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_both_models_are_trained_epochs_times_minibatches_times(tools, models):
    ppo(minibatches=4, epochs=2).step(tools.rollouts(models["policy"]), models)
    assert models["policy"].calls == ["forward logprobs"] + ["train"] * 8
    assert models["value"].calls == ["forward values"] + ["train"] * 8


def test_a_step_with_fewer_sequences_than_minibatches_takes_fewer_updates(tools, models):
    batch = tools.rollouts(models["policy"]).select([0, 1, 2])
    metrics = ppo(minibatches=8, epochs=2).step(batch, models)
    assert models["policy"].calls.count("train") == models["value"].calls.count("train") == 6
    assert np.isfinite(list(metrics.values())).all()


def test_one_update_needs_no_forward_pass_for_the_old_policy(tools, models):
    metrics = ppo(minibatches=1).step(tools.rollouts(models["policy"]), models)
    assert models["policy"].calls == ["train"]
    assert metrics["policy/max_ratio"] == 1.0


def test_every_epoch_trains_on_every_sequence_once_in_an_order_of_its_own(tools, models):
    models["policy"] = Recorder(models["policy"])
    ppo(epochs=2).step(tools.rollouts(models["policy"]), models)
    order = [b.sequence_columns["group"].tolist() for b in models["policy"].batches]
    first, second = order[0] + order[1], order[2] + order[3]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_advantages_and_returns_come_from_the_rewards_and_the_old_values(tools, models):
    models["value"] = Recorder(models["value"])
    batch = tools.rollouts(models["policy"])
    values = models["value"].forward(batch, ("values",))["values"]
    ppo(minibatches=1, whiten_advantages=False, gamma=0.9, lam=0.8).step(batch, models)
    (trained,) = models["value"].batches
    by_group = np.argsort(trained.sequence_columns["group"])
    trained = trained.select(by_group)
    for i in range(8):
        part = batch.sequence(i)
        steps = np.flatnonzero(batch.token_columns["loss_mask"][part]) + part.start
        advantage, following = 0.0, 0.0
        for t in reversed(steps.tolist()):
            reward = float(batch.sequence_columns["reward"][i]) if t == steps[-1] else 0.0
            advantage = reward + 0.9 * following - values[t] + 0.72 * advantage
            following = values[t]
            assert trained.token_columns["advantages"][t] == pytest.approx(advantage, abs=1e-5)
            assert trained.token_columns["returns"][t] == pytest.approx(advantage + values[t], abs=1e-5)


def test_truncated_completions_are_continued_by_the_value_of_their_last_state(tools, models):
    models["value"] = Recorder(models["value"])
    batch = tools.rollouts(models["policy"], reward=np.zeros(8, np.float32))
    scores = models["value"].forward(batch, ("scores",))["scores"]
    ppo(minibatches=1, lam=1.0, bootstrap_truncated=True).step(batch, models)
    (trained,) = models["value"].batches
    # γ = λ = 1 without rewards: every return is the value at the end.
    mask = trained.token_columns["loss_mask"] != 0
    sequences = trained.sequence_columns["group"][trained.sequence_ids]
    expected = np.where(batch.sequence_columns["truncated"], scores, 0.0)[sequences]
    assert batch.sequence_columns["truncated"].any()
    assert not batch.sequence_columns["truncated"].all()
    np.testing.assert_allclose(trained.token_columns["returns"][mask], expected[mask], atol=1e-5)


def test_whitened_advantages_have_mean_0_and_deviation_1_over_the_step(tools, models):
    models["policy"] = Recorder(models["policy"])
    ppo().step(tools.rollouts(models["policy"]), models)
    advantages = np.concatenate(
        [b.token_columns["advantages"][b.token_columns["loss_mask"] != 0] for b in models["policy"].batches]
    )
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert advantages.std() == pytest.approx(1, abs=1e-4)


def test_the_kl_to_the_reference_is_taken_off_every_token_s_reward(tools, models):
    models |= {"value": Recorder(models["value"]), "reference": tools.TinyModel(seed=1)}
    batch = tools.rollouts(models["policy"], reward=np.zeros(8, np.float32))
    mask = batch.token_columns["loss_mask"] != 0
    kl = (models["policy"].forward(batch)["logprobs"] - models["reference"].forward(batch)["logprobs"]) * mask
    metrics = ppo(minibatches=1, lam=1.0, kl={"coefficient": 0.5}).step(batch, models)
    (trained,) = models["value"].batches
    for i, group in enumerate(trained.sequence_columns["group"]):
        steps = np.flatnonzero(mask[batch.sequence(group)])
        costs = kl[batch.sequence(group)][steps]
        returns = trained.token_columns["returns"][trained.sequence(i)][steps]
        np.testing.assert_allclose(returns, -0.5 * np.cumsum(costs[::-1])[::-1], atol=1e-5)
    assert metrics["policy/kl_reference"] == pytest.approx(kl.sum() / mask.sum(), abs=1e-6)
    assert metrics["policy/kl_per_sequence"] == pytest.approx(kl.sum() / 8, abs=1e-6)
    assert metrics["policy/kl_coefficient"] == 0.5


def test_the_kl_to_an_identical_reference_is_zero(tools, models):
    models["reference"] = tools.TinyModel()
    metrics = ppo(kl={"coefficient": 0.1, "estimator": "k3"}).step(tools.rollouts(models["policy"]), models)
    assert metrics["policy/kl_reference"] == pytest.approx(0.0, abs=1e-6)


def test_the_adapted_coefficient_survives_a_checkpoint(tools, models):
    models["reference"] = tools.TinyModel(seed=1)
    kl = {"coefficient": 0.1, "controller": "adaptive", "target": 1e-3, "horizon": 8, "estimator": "k2"}
    algorithm, batch = ppo(kl=kl), tools.rollouts(models["policy"])
    assert algorithm.step(batch, models)["policy/kl_coefficient"] == 0.1
    # far above the target: 0.1 · (1 + 0.2 · 8 / 8)
    state = json.loads(json.dumps(algorithm.state()))
    assert state == {"kl_coefficient": pytest.approx(0.12)}
    resumed = ppo(kl=kl)
    resumed.load_state(state)
    assert resumed.step(batch, models)["policy/kl_coefficient"] == state["kl_coefficient"]


def test_a_fixed_coefficient_is_the_config_s_whatever_a_checkpoint_says():
    algorithm = ppo(kl={"coefficient": 0.1})
    assert algorithm.state() == {}
    algorithm.load_state({"kl_coefficient": 0.7})
    assert algorithm.state() == {}


def test_a_learning_rate_of_zero_keeps_every_metric_constant(tools):
    models = {
        "policy": tools.TinyModel(learning_rate=0.0),
        "value": tools.TinyModel("scalar", learning_rate=0.0),
        "reference": tools.TinyModel(seed=1),
    }
    algorithm, batch = ppo(kl={"coefficient": 0.1}, epochs=2), tools.rollouts(models["policy"])
    first, *later = [algorithm.step(batch, models) for _ in range(3)]
    assert abs(np.log(first["policy/max_ratio"])) < 1e-5
    assert first["value/clip_fraction"] == 0.0
    assert first["policy/kl_reference"] != 0
    for metrics in later:
        assert metrics == first


@pytest.mark.parametrize("loss_reduction", ["token", "sequence", "constant"])
def test_the_update_does_not_depend_on_micro_batches(tools, loss_reduction):
    options = {"loss_reduction": loss_reduction, "entropy_coefficient": 0.01, "minibatches": 1}
    if loss_reduction == "constant":
        options["constant_length"] = 6
    results = []
    for max_tokens in (10_000, 12, 1):
        models = {
            "policy": tools.TinyModel(max_tokens=max_tokens),
            "value": tools.TinyModel("scalar", max_tokens=max_tokens),
        }
        metrics = ppo(**options).step(tools.rollouts(models["policy"]), models)
        results.append((metrics, models["policy"].gradient(), models["value"].gradient()))
    for metrics, policy, value in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(policy, results[0][1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value, results[0][2], rtol=1e-4, atol=1e-5)


def test_log_probs_are_taken_at_the_sampling_temperature(tools, models):
    models["policy"] = tools.TinyModel(learning_rate=0.0)
    for parameter in models["policy"].parameters:
        parameter.data *= 3  # logits large enough for a temperature to matter
    batch = tools.rollouts(models["policy"], temperature=np.full(8, 0.5, np.float32))
    right = ppo().step(batch, models)
    wrong = ppo().step(batch.with_columns(sequence={"temperature": np.ones(8, np.float32)}), models)
    assert right["mismatch/max_abs_logprob_gap"] < 0.4  # the noise that was added to the sampler's log-probs
    assert wrong["mismatch/max_abs_logprob_gap"] > right["mismatch/max_abs_logprob_gap"]


def test_the_reference_is_asked_for_only_when_the_kl_penalty_is_on():
    policy, value = Role("policy", trainable=True), Role("value", trainable=True, head="scalar")
    assert tuple(ppo().roles()) == (policy, value)
    assert tuple(ppo(kl={"coefficient": 0.01}).roles()) == (policy, value, Role("reference", trainable=False))


def test_the_value_model_has_its_own_start_and_optimizer():
    algorithm = ppo(
        learning_rate=1e-6,
        value={"path": "/models/reward", "learning_rate": 1e-4, "optimizer": {"warmup_steps": 7}},
    )
    assert algorithm.roles()[1] == Role("value", trainable=True, head="scalar", path="/models/reward")
    policy, value = algorithm.optimizer("policy", 100), algorithm.optimizer("value", 100)
    assert (policy.learning_rate, policy.warmup_steps, policy.total_steps) == (1e-6, 0, 100)
    assert (value.learning_rate, value.warmup_steps, value.total_steps) == (1e-4, 7, 100)


def test_the_value_model_learns_to_explain_the_returns(tools):
    models = {"policy": tools.TinyModel(learning_rate=0.0), "value": tools.TinyModel("scalar")}
    algorithm = ppo(lam=1.0, value={"clip": None})
    batch = tools.rollouts(models["policy"], sequences=16)
    history = [algorithm.step(batch, models)["value/explained_variance"] for _ in range(100)]
    assert history[0] < 0.3
    assert history[-1] > 0.8


def test_it_has_no_loss_on_data_rows(models):
    with pytest.raises(RLError) as error:
        ppo().encode([{}], None)
    assert str(error.value) == "algorithm ppo trains on rollouts; it has no loss on data rows"
