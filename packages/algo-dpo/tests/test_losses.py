from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_algo_dpo.losses import (
    Completions,
    hinge,
    ipo,
    kto_loss,
    log1mexp,
    log_odds,
    orpo,
    pair_loss,
    robust,
    sigmoid,
    simpo,
)
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale

LN2 = 0.6931472


def completion(logprob: float, reference: float | None = None, length: float = 1.0) -> Completions:
    tensors = [None if x is None else torch.tensor([x], dtype=torch.float64) for x in (logprob, reference, length)]
    return Completions(*tensors)


def numbers(losses) -> tuple[float, float, float]:
    return losses.loss.item(), losses.chosen_reward.item(), losses.rejected_reward.item()


def test_dpo_at_the_reference_is_ln_2():
    same = completion(-12.0, -12.0), completion(-3.0, -3.0)
    assert sigmoid(*same, beta=0.1).loss.item() == pytest.approx(LN2, abs=1e-7)


def test_dpo_with_a_difference_of_10_at_beta_a_tenth():
    """h_c = -14 + 20 = 6, h_r = -9 + 5 = -4: z = 0.1 · (6 + 4) = 1; -log σ(1) = ln(1 + e^-1) = ln 1.3678794."""
    losses = sigmoid(completion(-14.0, -20.0), completion(-9.0, -5.0), beta=0.1)
    assert numbers(losses) == pytest.approx((0.3132617, 0.6, -0.4), abs=1e-7)


def test_label_smoothing_mixes_in_the_loss_of_the_swapped_pair():
    """z = 1, ε = 0.1: -log σ(1) = 0.3132617, -log σ(-1) = 1.3132617; 0.9 · 0.3132617 + 0.1 · 1.3132617 = 0.4132617."""
    losses = sigmoid(completion(-10.0, -20.0), completion(-5.0, -5.0), beta=0.1, label_smoothing=0.1)
    assert losses.loss.item() == pytest.approx(0.4132617, abs=1e-7)


def test_robust_dpo_takes_the_loss_of_the_swapped_pair_out():
    """z = 1, ε = 0.1: (0.9 · 0.3132617 - 0.1 · 1.3132617) / (1 - 0.2) = (0.2819355 - 0.1313262) / 0.8 = 0.1882617."""
    losses = robust(completion(-10.0, -20.0), completion(-5.0, -5.0), beta=0.1, label_smoothing=0.1)
    assert losses.loss.item() == pytest.approx(0.1882617, abs=1e-7)


def test_robust_dpo_at_the_reference_is_ln_2():
    """(0.9 · ln 2 - 0.1 · ln 2) / 0.8 = ln 2."""
    losses = robust(completion(-4.0, -4.0), completion(-4.0, -4.0), beta=0.1, label_smoothing=0.1)
    assert losses.loss.item() == pytest.approx(LN2, abs=1e-7)


def test_ipo_is_0_where_the_mean_log_ratios_differ_by_one_over_two_beta():
    """h_c/|c| = (-10 + 22)/2 = 6, h_r/|r| = (-12 + 16)/4 = 1: (6 - 1 - 1/0.2)² = 0."""
    losses = ipo(completion(-10.0, -22.0, 2.0), completion(-12.0, -16.0, 4.0), beta=0.1)
    assert numbers(losses) == pytest.approx((0.0, 0.6, 0.1), abs=1e-12)


def test_ipo_at_the_reference_is_the_square_of_its_target():
    """(0 - 1/0.2)² = 25."""
    assert ipo(completion(-4.0, -4.0, 2.0), completion(-9.0, -9.0, 3.0), beta=0.1).loss.item() == pytest.approx(25.0)


def test_hinge_is_what_the_margin_lacks_to_1():
    """β (h_c - h_r) = 0.1 · (6 - 2) = 0.4: 1 - 0.4 = 0.6; with 0.1 · (16 - 2) = 1.4 it is 0."""
    assert hinge(completion(-14.0, -20.0), completion(-3.0, -5.0), beta=0.1).loss.item() == pytest.approx(0.6)
    assert hinge(completion(-4.0, -20.0), completion(-3.0, -5.0), beta=0.1).loss.item() == 0.0


def test_simpo_compares_token_means_with_a_target_margin():
    """β (-3/3 - -8/4) - γ = 2 · (-1 + 2) - 1 = 1: -log σ(1) = 0.3132617; rewards 2 · -1 and 2 · -2."""
    losses = simpo(completion(-3.0, None, 3.0), completion(-8.0, None, 4.0), beta=2.0, target_margin=1.0)
    assert numbers(losses) == pytest.approx((0.3132617, -2.0, -4.0), abs=1e-7)


def test_orpo_adds_the_odds_ratio_to_the_likelihood_of_the_chosen():
    """p_c = 1/2 (two tokens, ln 1/4 in all): odds 1; p_r = 1/4: odds 1/3; log of the ratio = ln 3.

    -log σ(ln 3) = ln(1 + 1/3) = 0.2876821; NLL = ln 2; 0.6931472 + 0.1 · 0.2876821 = 0.7219154.
    """
    losses = orpo(completion(math.log(0.25), None, 2.0), completion(3 * math.log(0.25), None, 3.0), orpo_lambda=0.1)
    assert numbers(losses) == pytest.approx((0.7219154, 0.0, -math.log(3)), abs=1e-7)


def one_sequence_each(logprobs: list[float], **columns) -> tuple[SequenceBatch, torch.Tensor]:
    """Sequences of a prompt token and a completion token with the given log-probs."""
    batch = SequenceBatch.from_lists(
        [[1, 2]] * len(logprobs),
        token_columns={"loss_mask": [np.array([0, 1], np.float32)] * len(logprobs)},
        sequence_columns={name: np.array(column) for name, column in columns.items()},
    )
    flat = torch.tensor([x for logprob in logprobs for x in (math.nan, logprob)], dtype=torch.float64)
    return batch, flat


def test_kto_weighs_completions_on_the_wrong_side_of_the_baseline(tools):
    """β = 0.1, z = 0.5. Desirable: h = 15, r = 1.5, 1 - σ(1) = 0.2689414, times λ_D 1.5 = 0.4034121.

    Undesirable: h = -5, r = -0.5, 1 - σ(z - r) = 1 - σ(1) = 0.2689414, times λ_U 1 = 0.2689414.
    The mean is (0.4034121 + 0.2689414) / 2 = 0.3361768.
    """
    batch, logprobs = one_sequence_each(
        [-5.0, -9.0], ref_logprob=[-20.0, -4.0], desirable=[True, False], kl_baseline=[0.5, 0.5]
    )
    loss, metrics = kto_loss(
        tools.outputs_of(logprobs, batch),
        tools.columns_of(batch),
        Scale.of(batch),
        beta=0.1,
        desirable_weight=1.5,
        undesirable_weight=1.0,
        desirable=1,
        undesirable=1,
    )
    assert loss.item() == pytest.approx(0.3361768, abs=1e-7)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "kl": 5.0,  # 0.5 / 0.1
            "preference_accuracy": 1.0,  # 1.5 > 0.5 and -0.5 < 0.5
            "reward_chosen": 1.5,
            "reward_rejected": -0.5,
            "margin": 2.0,
            "logp_chosen": -5.0,
            "logp_rejected": -9.0,
        }
    )


def test_kto_at_the_reference_is_half_of_its_weights(tools):
    """r = z = 0: 1 - σ(0) = 1/2 for both kinds; (1 · 1/2 + 1.3 · 1/2) / 2 = 0.575."""
    batch, logprobs = one_sequence_each(
        [-5.0, -9.0], ref_logprob=[-5.0, -9.0], desirable=[True, False], kl_baseline=[0.0, 0.0]
    )
    loss, _ = kto_loss(
        tools.outputs_of(logprobs, batch), tools.columns_of(batch), Scale.of(batch), **KTO, desirable=1, undesirable=1
    )
    assert loss.item() == pytest.approx(0.575)


def test_kto_without_undesirable_completions_reports_no_margin(tools):
    batch, logprobs = one_sequence_each([-5.0], ref_logprob=[-6.0], desirable=[True], kl_baseline=[0.0])
    _, metrics = kto_loss(
        tools.outputs_of(logprobs, batch), tools.columns_of(batch), Scale.of(batch), **KTO, desirable=1, undesirable=0
    )
    assert sorted(metrics) == ["kl", "logp_chosen", "preference_accuracy", "reward_chosen"]


def test_pairs_report_rewards_margin_accuracy_and_log_probs(tools):
    """Pair 1: h = 6 and -4; pair 2: h = -2 and 2, the wrong way round. β = 0.1, α = 0.5, NLL = (14 + 7) / 2."""
    batch, logprobs = one_sequence_each(
        [-14.0, -9.0, -7.0, -1.0],
        ref_logprob=[-20.0, -5.0, -5.0, -3.0],
        unit=[0, 0, 1, 1],
        chosen=[True, False, True, False],
    )
    loss, metrics = pair_loss(
        tools.outputs_of(logprobs, batch),
        tools.columns_of(batch),
        Scale.of(batch),
        loss="sigmoid",
        beta=0.1,
        sft_coefficient=0.5,
    )
    dpo = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(0.4))) / 2
    assert loss.item() == pytest.approx(dpo + 0.5 * 10.5, abs=1e-12)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "preference_accuracy": 0.5,
            "margin": 0.1 * (10 - 4) / 2,
            "reward_chosen": 0.1 * (6 - 2) / 2,
            "reward_rejected": 0.1 * (-4 + 2) / 2,
            "logp_chosen": -10.5,
            "logp_rejected": -5.0,
            "nll_chosen": 10.5,
        }
    )


KTO = {"beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.3}
CASES = {
    "sigmoid": {"beta": 0.3},
    "cdpo": {"loss": "sigmoid", "beta": 0.3, "label_smoothing": 0.2},
    "sigmoid with sft": {"loss": "sigmoid", "beta": 0.3, "sft_coefficient": 0.7},
    "robust": {"beta": 0.3, "label_smoothing": 0.2},
    "ipo": {"beta": 0.3},
    "hinge": {"beta": 0.3},
    "simpo": {"beta": 2.0, "target_margin": 0.6},
    "simpo with sft": {"loss": "simpo", "beta": 2.0, "target_margin": 0.6, "sft_coefficient": 0.7},
    "orpo": {"orpo_lambda": 0.4},
    "kto": KTO,
}


def call(case: str, outputs, columns, scale, whole: SequenceBatch):
    if case == "kto":
        desirable = int(whole.sequence_columns["desirable"].sum())
        return kto_loss(outputs, columns, scale, **KTO, desirable=desirable, undesirable=len(whole) - desirable)
    return pair_loss(outputs, columns, scale, **{"loss": case, **CASES[case]})


@pytest.fixture
def problem(tools):
    """Five ragged pairs in shuffled order with random float64 logits."""
    batch = tools.ragged_pairs(5, seed=1)
    rng = np.random.default_rng(2)
    return batch, [torch.tensor(rng.normal(size=(n, 12)), requires_grad=True) for n in batch.lengths]


def naive_loss(case: str, batch: SequenceBatch, logits: list[torch.Tensor]) -> torch.Tensor:
    """The formulas on padded [B, L] matrices, written independently of the package."""
    width = int(batch.lengths.max())
    logp, mask = torch.zeros(len(batch), width, dtype=torch.float64), torch.zeros(len(batch), width).double()
    for i, scores in enumerate(logits):
        tokens = batch.tokens[batch.sequence(i)]
        mask[i, : len(tokens)] = torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)]).double()
        for t in range(1, len(tokens)):
            logp[i, t] = torch.log(torch.softmax(scores[t - 1], dim=0)[int(tokens[t])])
    sums, lengths = (logp * mask).sum(1), mask.sum(1)
    ref = torch.from_numpy(batch.sequence_columns["ref_logprob"])
    options = CASES[case]
    s = torch.nn.functional.sigmoid
    if case == "kto":
        r, z = options["beta"] * (sums - ref), torch.from_numpy(batch.sequence_columns["kl_baseline"])
        good = torch.from_numpy(batch.sequence_columns["desirable"])
        value = torch.where(good, options["desirable_weight"] * (1 - s(r - z)), 0)
        return (value + torch.where(good, 0, options["undesirable_weight"] * (1 - s(z - r)))).mean()
    per_pair = []
    for unit in np.unique(batch.sequence_columns["unit"]):
        members = np.flatnonzero(batch.sequence_columns["unit"] == unit)
        c, r = sorted(members, key=lambda i: not batch.sequence_columns["chosen"][i])
        h_c, h_r = sums[c] - ref[c], sums[r] - ref[r]
        m_c, m_r = sums[c] / lengths[c], sums[r] / lengths[r]
        kind, beta, eps = options.get("loss", case), options.get("beta", 0.0), options.get("label_smoothing", 0.0)
        z = beta * (h_c - h_r)
        value = {
            "sigmoid": lambda z=z, eps=eps: -(1 - eps) * torch.log(s(z)) - eps * torch.log(s(-z)),
            "robust": lambda z=z, eps=eps: (-(1 - eps) * torch.log(s(z)) + eps * torch.log(s(-z))) / (1 - 2 * eps),
            "ipo": lambda h_c=h_c, h_r=h_r, c=c, r=r, beta=beta: (
                (h_c / lengths[c] - h_r / lengths[r] - 1 / (2 * beta)) ** 2
            ),
            "hinge": lambda z=z: torch.clamp(1 - z, min=0),
            "simpo": lambda m_c=m_c, m_r=m_r, beta=beta: -torch.log(s(beta * (m_c - m_r) - options["target_margin"])),
            "orpo": lambda m_c=m_c, m_r=m_r: (
                -m_c
                - options["orpo_lambda"]
                * torch.log(s(torch.log(m_c.exp() / (1 - m_c.exp())) - torch.log(m_r.exp() / (1 - m_r.exp()))))
            ),
        }[kind]()
        per_pair.append(value - options.get("sft_coefficient", 0.0) * m_c)
    return torch.stack(per_pair).mean()


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_a_naive_padded_reference(case, tools, problem):
    batch, logits = problem
    expected = naive_loss(case, batch, logits)
    expected_gradient = torch.autograd.grad(expected, logits)
    loss, _ = call(case, tools.outputs_from_logits(logits, batch), tools.columns_of(batch), Scale.of(batch), batch)
    gradient = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert max(g.abs().max().item() for g in expected_gradient) > 1e-4
    for mine, theirs in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_of_one_pair_add_up_to_the_whole(case, tools, problem):
    batch, logits = problem
    scale = Scale.of(batch)
    whole, metrics = call(case, tools.outputs_from_logits(logits, batch), tools.columns_of(batch), scale, batch)
    gradient = torch.autograd.grad(whole, logits)

    total, sums, added = 0.0, dict.fromkeys(metrics, 0.0), [torch.zeros_like(g) for g in gradient]
    parts = batch.pack(1)
    assert len(parts) == 5
    for indices in parts:
        part, scores = batch.select(indices), [logits[i] for i in indices]
        loss, partial = call(case, tools.outputs_from_logits(scores, part), tools.columns_of(part), scale, batch)
        for index, g in zip(indices, torch.autograd.grad(loss, scores), strict=True):
            added[index] += g
        total += loss.item()
        sums = {name: sums[name] + partial[name].item() for name in sums}
    assert total == pytest.approx(whole.item(), rel=1e-6)
    assert sums == pytest.approx({name: value.item() for name, value in metrics.items()}, rel=1e-6)
    for mine, theirs in zip(added, gradient, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_sequences_does_not_matter(case, tools, problem):
    batch, logits = problem
    order = np.random.default_rng(3).permutation(len(batch))
    shuffled = batch.select(order)
    here = call(case, tools.outputs_from_logits(logits, batch), tools.columns_of(batch), Scale.of(batch), batch)
    outputs = tools.outputs_from_logits([logits[i] for i in order], shuffled)
    there = call(case, outputs, tools.columns_of(shuffled), Scale.of(shuffled), batch)
    assert there[0].item() == pytest.approx(here[0].item(), rel=1e-12)
    values = [{name: metric.item() for name, metric in metrics.items()} for _, metrics in (here, there)]
    assert values[1] == pytest.approx(values[0], rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_micro_batch_without_sequences_adds_nothing(case, tools, problem):
    batch, _ = problem
    empty = batch.select(np.zeros(0, np.int64))
    logprobs = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    loss, _ = call(case, tools.outputs_of(logprobs, empty), tools.columns_of(empty), Scale.of(batch), batch)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("missing", [0, 1])
def test_half_a_pair_is_an_error(missing, tools):
    batch = tools.ragged_pairs(2)
    halves = batch.select(np.flatnonzero(batch.sequence_columns["chosen"] == bool(missing)))
    logprobs = torch.zeros(len(halves.tokens), dtype=torch.float64)
    with pytest.raises(ValueError, match="preference pair") as error:
        pair_loss(
            tools.outputs_of(logprobs, halves), tools.columns_of(halves), Scale.of(batch), loss="sigmoid", beta=0.1
        )
    assert str(error.value) == (
        "a micro-batch has a preference pair without its other completion; "
        "sequences that share a unit must stay in one micro-batch"
    )


def test_two_chosen_sides_are_no_pair(tools):
    batch = tools.ragged_pairs(1).with_columns(sequence={"chosen": np.array([True, True])})
    logprobs = torch.zeros(len(batch.tokens), dtype=torch.float64)
    with pytest.raises(ValueError, match="preference pair without its other completion"):
        pair_loss(tools.outputs_of(logprobs, batch), tools.columns_of(batch), Scale.of(batch), loss="ipo", beta=0.1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("logprob", [0.0, -1e-9, -1e5])
def test_extreme_log_probs_keep_loss_and_gradient_finite(case, logprob, tools):
    batch = tools.ragged_pairs(3)
    logprobs = torch.full((len(batch.tokens),), logprob, dtype=torch.float64, requires_grad=True)
    loss, _ = call(case, tools.outputs_of(logprobs, batch), tools.columns_of(batch), Scale.of(batch), batch)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logprobs.grad).all()


def test_log1mexp_is_accurate_from_one_end_to_the_other():
    x = torch.tensor([-1e-10, -1e-3, -0.6931471805599453, -1.0, -50.0], dtype=torch.float64)
    expected = [math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(expected, rel=1e-12)
    assert log1mexp(torch.tensor([-1e-10], dtype=torch.float64)).item() == pytest.approx(math.log(1e-10), rel=1e-9)


def test_log_odds_of_certainty_are_finite():
    """ln(1 / 1e-12) = 27.6."""
    assert log_odds(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(27.631, abs=1e-3)
    assert log_odds(torch.tensor([math.log(0.75)], dtype=torch.float64)).item() == pytest.approx(math.log(3))


def test_long_completions_lose_no_digits_to_their_length(tools):
    """4,000 tokens at -2.1 in float32, summed one by one in float32, would be off by more than 0.01."""
    tokens = 4001
    mask = [np.concatenate([[0], np.ones(tokens - 1)]).astype(np.float32)] * 2
    exact = float(np.float32(-2.1)) * (tokens - 1)
    batch = SequenceBatch.from_lists(
        [np.zeros(tokens)] * 2,
        token_columns={"loss_mask": mask},
        sequence_columns={
            "unit": np.zeros(2, np.int64),
            "chosen": np.array([True, False]),
            "ref_logprob": np.array([exact, exact - 5.0]),
        },
    )
    logprobs = torch.full((2 * tokens,), -2.1)
    _, metrics = pair_loss(
        tools.outputs_of(logprobs, batch), tools.columns_of(batch), Scale.of(batch), loss="sigmoid", beta=1.0
    )
    assert metrics["reward_chosen"].item() == pytest.approx(0.0, abs=1e-6)
    assert metrics["reward_rejected"].item() == pytest.approx(5.0, abs=1e-6)
