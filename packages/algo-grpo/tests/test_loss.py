from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_algo_grpo.loss import clipped_surrogate, kl_estimate, policy_loss
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale

OPTIONS = {
    "clip_low": 0.2,
    "clip_high": 0.28,
    "dual_clip": None,
    "reduction": "token",
    "constant_length": None,
    "kl_coefficient": 0.0,
    "kl_estimator": "k3",
    "on_policy": False,
    "entropy_metric": False,
}


def surrogate(advantage: float, ratio: float, **options):
    loss, _, clipped = clipped_surrogate(
        torch.tensor([math.log(ratio)], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        **{"clip_low": 0.2, "clip_high": 0.2, **options},
    )
    return loss.item(), clipped.item()


def test_a_ratio_above_the_range_earns_no_more_for_a_good_token():
    assert surrogate(1.0, 1.5) == (pytest.approx(-1.2), 1.0)


def test_a_ratio_below_the_range_earns_no_more_for_a_bad_token():
    assert surrogate(-1.0, 0.5) == (pytest.approx(0.8), 1.0)


def test_a_bad_token_that_became_likelier_is_not_clipped():
    assert surrogate(-1.0, 10.0) == (pytest.approx(10.0), 0.0)


def test_dual_clip_bounds_the_cost_of_a_bad_token():
    assert surrogate(-1.0, 10.0, dual_clip=3.0) == (pytest.approx(3.0), 1.0)


def test_dual_clip_leaves_good_tokens_alone():
    assert surrogate(1.0, 0.1, dual_clip=3.0) == (pytest.approx(-0.1), 0.0)


def test_the_two_clip_ranges_are_separate():
    assert surrogate(1.0, 1.5, clip_high=0.28)[0] == pytest.approx(-1.28)
    assert surrogate(-1.0, 0.5, clip_low=0.4)[0] == pytest.approx(0.6)


def test_a_hopelessly_unlikely_token_keeps_the_loss_finite():
    loss, ratio, _ = clipped_surrogate(
        torch.tensor([500.0, -500.0]), torch.tensor([-1.0, 1.0]), clip_low=0.2, clip_high=0.2
    )
    assert torch.isfinite(loss).all()
    assert torch.isfinite(ratio).all()


def test_kl_estimators_at_a_factor_of_two():
    d = torch.tensor([math.log(2)], dtype=torch.float64)
    assert kl_estimate(d, "k1").item() == pytest.approx(-0.6931472, abs=1e-7)
    assert kl_estimate(d, "k2").item() == pytest.approx(0.2402265, abs=1e-7)
    assert kl_estimate(d, "k3").item() == pytest.approx(0.3068528, abs=1e-7)


def test_kl_estimates_stay_finite_far_from_the_reference():
    far = torch.tensor([1e4, -1e4])
    assert kl_estimate(far, "k1").tolist() == [-20.0, 20.0]
    assert kl_estimate(far, "k3").tolist() == pytest.approx([math.exp(20) - 21, 19.0], rel=1e-6)


@pytest.fixture
def problem(tools):
    """Eight ragged sequences with random float64 logits and everything a loss may read."""
    rng = np.random.default_rng(1)
    batch = tools.rollouts(tools.TinyModel(), seed=1)
    logits = [torch.tensor(rng.normal(size=(n, 12)), requires_grad=True) for n in batch.lengths]
    exact = tools.outputs_from_logits(logits, batch, 0.7).logprobs.detach().numpy()
    mask = batch.token_columns["loss_mask"]
    columns = {
        name: ((exact + rng.normal(scale=spread, size=len(exact))) * mask)
        for name, spread in (("old_logprobs", 0.3), ("ref_logprobs", 0.5), ("sampled_logprobs", 0.1))
    }
    columns["advantages"] = rng.normal(size=8)[batch.sequence_ids]
    return batch.with_columns(token=columns), logits


def padded(batch: SequenceBatch, column: np.ndarray) -> torch.Tensor:
    out = torch.zeros(len(batch), int(batch.lengths.max()), dtype=torch.float64)
    for i in range(len(batch)):
        part = column[batch.sequence(i)]
        out[i, : len(part)] = torch.from_numpy(np.asarray(part, np.float64))
    return out


def naive_loss(batch: SequenceBatch, logits: list[torch.Tensor], options: dict) -> torch.Tensor:
    """The formulas on padded [B, L] matrices, written independently of the package."""
    columns = {name: padded(batch, column) for name, column in batch.token_columns.items()}
    mask, advantage = columns["loss_mask"], columns["advantages"]
    rows = []
    for i, scores in enumerate(logits):
        tokens = batch.tokens[batch.sequence(i)]
        row = [torch.zeros((), dtype=torch.float64)] * mask.shape[1]
        for t in range(1, len(tokens)):
            row[t] = torch.log(torch.softmax(scores[t - 1] / 0.7, dim=0)[int(tokens[t])])
        rows.append(torch.stack(row))
    logprobs = torch.stack(rows)
    old = logprobs.detach() if options["on_policy"] else columns["old_logprobs"]
    ratio = torch.exp(logprobs - old)
    clip = torch.clip(ratio, 1 - options["clip_low"], 1 + options["clip_high"])
    loss = -torch.minimum(advantage * ratio, advantage * clip)
    if options["dual_clip"]:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * options["dual_clip"]), loss)
    if options["kl_coefficient"]:
        d = columns["ref_logprobs"] - logprobs
        kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - 1 - d}[options["kl_estimator"]]
        loss = loss + options["kl_coefficient"] * kl
    if options["reduction"] == "token":
        return (loss * mask).sum() / mask.sum()
    if options["reduction"] == "sequence":
        return ((loss * mask).sum(1) / mask.sum(1)).mean()
    return (loss * mask).sum() / (len(batch) * options["constant_length"])


CASES = {
    "token": {},
    "sequence": {"reduction": "sequence"},
    "constant": {"reduction": "constant", "constant_length": 6},
    "dual clip": {"dual_clip": 1.2},
    "on policy": {"on_policy": True},
    "kl k1": {"kl_coefficient": 0.1, "kl_estimator": "k1"},
    "kl k2": {"kl_coefficient": 0.1, "kl_estimator": "k2"},
    "kl k3 per sequence": {"kl_coefficient": 0.1, "kl_estimator": "k3", "reduction": "sequence"},
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_a_naive_padded_reference(tools, problem, case):
    batch, logits = problem
    options = {**OPTIONS, **CASES[case]}
    expected = naive_loss(batch, logits, options)
    expected_gradient = torch.autograd.grad(expected, logits)

    outputs = tools.outputs_from_logits(logits, batch, 0.7)
    loss, _ = policy_loss(outputs, tools.columns_of(batch, torch.float64), Scale.of(batch), **options)
    gradient = torch.autograd.grad(loss, logits)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for found, wanted in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_batch_add_up_to_the_whole(tools, problem, case):
    batch, logits = problem
    options = {**OPTIONS, **CASES[case], "entropy_metric": True}
    scale = Scale.of(batch)

    def run(indices: list[int]):
        part = batch.select(indices)
        outputs = tools.outputs_from_logits([logits[i] for i in indices], part, 0.7, entropy=True)
        return policy_loss(outputs, tools.columns_of(part, torch.float64), scale, **options)

    whole, metrics = run(list(range(8)))
    parts = [run(indices) for indices in ([3], [0, 7, 1], [2, 4, 5, 6])]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-12)
    for name, value in metrics.items():
        values = [part[name].item() for _, part in parts]
        joined = max(values) if "/max_" in name else sum(values)
        assert joined == pytest.approx(value.item(), rel=1e-12), name


def test_an_empty_micro_batch_adds_nothing(tools, problem):
    batch, _ = problem
    nothing = batch.select([])
    outputs = tools.TokenOutputs(
        logprobs=torch.zeros(0, requires_grad=True), sequence_ids=torch.zeros(0, dtype=torch.int64), sequences=0
    )
    for reduction in ("token", "sequence"):
        loss, metrics = policy_loss(
            outputs,
            tools.columns_of(nothing, torch.float32),
            Scale.of(batch),
            **{**OPTIONS, "reduction": reduction},
        )
        assert loss.item() == 0.0
        assert all(value.item() == 0.0 for value in metrics.values())


def test_masked_tokens_are_ignored_whatever_they_hold(tools, problem):
    batch, logits = problem
    options = {**OPTIONS, "kl_coefficient": 0.1}

    def run(columns):
        outputs = tools.outputs_from_logits(logits, batch, 0.7)
        return policy_loss(outputs, columns, Scale.of(batch), **options)

    clean = tools.columns_of(batch, torch.float64)
    dirty = dict(clean)
    for name in ("old_logprobs", "ref_logprobs", "sampled_logprobs"):
        dirty[name] = torch.where(clean["loss_mask"] != 0, clean[name], torch.full_like(clean[name], float("nan")))
    loss, metrics = run(clean)
    dirty_loss, dirty_metrics = run(dirty)
    assert dirty_loss.item() == loss.item()
    assert {k: v.item() for k, v in dirty_metrics.items()} == {k: v.item() for k, v in metrics.items()}


def test_metrics_of_a_batch_worked_out_by_hand(tools):
    """Two completion tokens, A = 1: ratios 2 (clipped at 1.28) and 1; the sampler reported half and the same."""
    batch = SequenceBatch.from_lists(
        [[5, 1, 2]],
        token_columns={
            "loss_mask": [np.array([0, 1, 1], np.float32)],
            "advantages": [np.ones(3, np.float32)],
            "old_logprobs": [np.log([1, 0.25, 0.5])],
            "ref_logprobs": [np.log([1, 1.0, 0.5])],
            "sampled_logprobs": [np.log([1, 0.125, 0.5])],
        },
    )
    outputs = tools.TokenOutputs(
        logprobs=torch.log(torch.tensor([1, 0.5, 0.5], dtype=torch.float64)),
        sequence_ids=torch.zeros(3, dtype=torch.int64),
        sequences=1,
        entropy=torch.tensor([9.0, 0.5, 0.25], dtype=torch.float64),
    )
    options = {**OPTIONS, "kl_coefficient": 0.1, "entropy_metric": True}
    loss, metrics = policy_loss(outputs, tools.columns_of(batch, torch.float64), Scale.of(batch), **options)

    kl = 0.3068528 / 2  # k3 at d = ln 2 for the first token, 0 for the second
    assert loss.item() == pytest.approx(-(1.28 + 1) / 2 + 0.1 * kl)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "policy/clip_fraction": 0.5,
            "policy/max_ratio": 2.0,
            "policy/kl_reference": kl,
            "policy/entropy": 0.375,
            "mismatch/mean_w": (2 + 1) / 2,
            "mismatch/kl_k3": kl,
            "mismatch/max_abs_logprob_gap": math.log(2),
        }
    )
