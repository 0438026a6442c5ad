"""The losses against numbers by hand and against naive loops, whatever the micro-batches."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rl_algo_sft_rm.losses import bradley_terry, negative_log_likelihood, smoothed_cross_entropy
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_torch.losses import LossBatch

torch.set_num_threads(1)


def tokens(logits: torch.Tensor, targets: list[int]) -> SimpleNamespace:
    """Token outputs of logits [T, V]."""
    log_p = torch.log_softmax(logits, -1)
    return SimpleNamespace(
        logprobs=log_p.gather(1, torch.tensor(targets)[:, None])[:, 0],
        mean_logprobs=log_p.mean(1),
        logsumexp=logits.logsumexp(1),
    )


def weights(*values: float) -> dict[str, torch.Tensor]:
    return {"loss_mask": torch.tensor(values)}


def pairs(units: list[int], chosen: list[bool], margin: list[float] | None = None) -> LossBatch:
    columns = {"unit": np.array(units, np.int64), "chosen": np.array(chosen, bool)}
    if margin is not None:
        columns["margin"] = np.array(margin, np.float32)
    return LossBatch(SequenceBatch.from_lists([[1]] * len(units), sequence_columns=columns))


def rank(scores: list[float], batch: LossBatch, *, total: float | None = None, **options):
    """Loss, metrics and gradient."""
    values = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    count = total or len(scores) / 2
    loss, metrics = bradley_terry(SimpleNamespace(scores=values), batch, Scale(0, 0, count), **options)
    (gradient,) = torch.autograd.grad(loss, values)
    return loss.item(), {name: float(v.detach()) for name, v in metrics.items()}, gradient


def test_label_smoothing_by_hand() -> None:
    """π = (3/4, 1/4), y = 0, ε = 0.2: 0.8 ln(4/3) + 0.2 (ln(4/3) + ln 4)/2
    = 0.8 · 0.2876821 + 0.1 · (0.2876821 + 1.3862944) = 0.3975433."""
    outputs = tokens(torch.tensor([[3.0, 1.0]]).log(), [0])
    loss, metrics = smoothed_cross_entropy(outputs, weights(1.0), Scale(1, 1, 1), label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.3975433, abs=1e-6)
    assert metrics["nll"].item() == pytest.approx(0.2876821, abs=1e-6)
    assert sorted(metrics) == ["nll"]


def test_z_loss_by_hand() -> None:
    """Logits (ln 3, 0): logsumexp = ln 4; 0.1 · (ln 4)² = 0.1921812, on top of ln(4/3) = 0.2876821."""
    outputs = tokens(torch.tensor([[3.0, 1.0]]).log(), [0])
    loss, metrics = smoothed_cross_entropy(outputs, weights(1.0), Scale(1, 1, 1), z_loss=0.1)
    assert metrics["z_loss"].item() == pytest.approx(0.1921812, abs=1e-6)
    assert loss.item() == pytest.approx(0.4798633, abs=1e-6)


def test_label_smoothing_is_cross_entropy_with_a_smoothed_target() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    targets = [0, 3, 8, 1, 1, 5]
    loss, _ = smoothed_cross_entropy(
        tokens(logits, targets), {"loss_mask": torch.ones(6)}, Scale(6, 1, 1), label_smoothing=0.3
    )
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), label_smoothing=0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_tokens_without_weight_may_be_anything() -> None:
    outputs = tokens(torch.zeros(2, 2), [0, 0])
    outputs.logprobs[0] = outputs.mean_logprobs[0] = outputs.logsumexp[0] = math.nan
    assert negative_log_likelihood(outputs, weights(0, 1), Scale(1, 1, 1))[0].item() == pytest.approx(math.log(2))
    loss, _ = smoothed_cross_entropy(outputs, weights(0, 1), Scale(1, 1, 1), label_smoothing=0.5, z_loss=1.0)
    assert loss.item() == pytest.approx(math.log(2) + math.log(2) ** 2)


def test_equal_rewards_give_ln_2_and_even_odds() -> None:
    loss, metrics, gradient = rank([0.0, 0.0], pairs([0, 0], [True, False]))
    assert loss == pytest.approx(0.6931472, abs=1e-7)
    assert metrics == {"preference_accuracy": 0.5, "margin": 0.0, "score_mean": 0.0}
    assert gradient.tolist() == [-0.5, 0.5]


def test_the_margin_by_hand() -> None:
    """r_c - r_r = 2 - 0.5 = 1.5, m = 1: -log σ(0.5) = ln(1 + e^-0.5) = ln 1.6065307 = 0.4740770."""
    loss, metrics, _ = rank([2.0, 0.5], pairs([0, 0], [True, False]), margin=1.0)
    assert loss == pytest.approx(0.4740770, abs=1e-7)
    assert metrics == {"preference_accuracy": 1.0, "margin": 1.5, "score_mean": 1.25}


def test_centering_by_hand() -> None:
    """-log σ(1.5) = ln(1 + e^-1.5) = 0.2014133; 0.01 (2 + 0.5)² = 0.0625; together 0.2639133."""
    loss, metrics, _ = rank([2.0, 0.5], pairs([0, 0], [True, False]), center_rewards_coefficient=0.01)
    assert loss == pytest.approx(0.2639133, abs=1e-7)
    assert metrics["centering"] == pytest.approx(0.0625)


def test_pairs_may_have_margins_of_their_own() -> None:
    """ln(1 + e^(m - d)) for (d, m) = (1, 0), (1, 3): (0.3132617 + 2.1269280) / 2 = 1.2200949."""
    batch = pairs([4, 4, 9, 9], [True, False, True, False], [0, 0, 3, 3])
    assert rank([1.0, 0.0, 1.0, 0.0], batch)[0] == pytest.approx(1.2200949, abs=1e-7)


def test_far_apart_rewards_stay_finite() -> None:
    loss, metrics, gradient = rank([-1e4, 1e4], pairs([0, 0], [True, False]))
    assert loss == pytest.approx(2e4)
    assert metrics["preference_accuracy"] == 0.0
    assert gradient.tolist() == [-1.0, 1.0]


def test_loss_and_gradient_equal_a_naive_loop_in_any_order() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(20)
    units, chosen = (np.arange(20) // 2 * 7)[order], (np.arange(20) % 2 == 0)[order]
    margins = (np.arange(20) // 2 / 4)[order]
    scores = rng.normal(size=20)
    batch = pairs(units.tolist(), chosen.tolist(), margins.tolist())
    loss, metrics, gradient = rank(scores.tolist(), batch, center_rewards_coefficient=0.3)

    values = torch.tensor(scores, requires_grad=True)
    terms, differences = [], []
    for unit in sorted(set(units)):
        (c,) = np.flatnonzero((units == unit) & chosen)
        (r,) = np.flatnonzero((units == unit) & ~chosen)
        differences.append(scores[c] - scores[r])
        bradley = -torch.log(torch.sigmoid(values[c] - values[r] - margins[c]))
        terms.append(bradley + 0.3 * (values[c] + values[r]) ** 2)
    expected = torch.stack(terms).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, values)[0], rtol=0, atol=1e-14)
    assert metrics["preference_accuracy"] == pytest.approx(np.mean(np.array(differences) > 0))
    assert metrics["margin"] == pytest.approx(np.mean(differences))
    assert metrics["score_mean"] == pytest.approx(scores.mean())


def test_two_micro_batches_add_up_to_the_whole_step() -> None:
    scores, units, chosen = [0.3, -0.2, 1.0, 0.4, -1.0, 0.6], [0, 0, 1, 1, 2, 2], [True, False] * 3
    options = {"margin": 0.5, "center_rewards_coefficient": 0.1}
    loss, metrics, gradient = rank(scores, pairs(units, chosen), **options)
    parts = [rank(scores[s], pairs(units[s], chosen[s]), total=3.0, **options) for s in (slice(0, 4), slice(4, 6))]
    assert sum(p[0] for p in parts) == pytest.approx(loss, rel=1e-12)
    for name, value in metrics.items():
        assert sum(p[1][name] for p in parts) == pytest.approx(value, rel=1e-6), name
    torch.testing.assert_close(torch.cat([p[2] for p in parts]), gradient)


@pytest.mark.parametrize(
    ("units", "chosen", "found"),
    [
        ([7, 7, 8], [True, False, True], "unit 8 of the micro-batch has 1 chosen and 0 rejected"),
        ([7, 7], [True, True], "unit 7 of the micro-batch has 2 chosen and 0 rejected"),
        ([7, 7, 7], [True, False, False], "unit 7 of the micro-batch has 1 chosen and 2 rejected"),
    ],
)
def test_a_unit_that_is_no_pair_is_named(units: list[int], chosen: list[bool], found: str) -> None:
    with pytest.raises(ValueError, match="a pair is") as caught:
        rank([0.0] * len(units), pairs(units, chosen))
    assert str(caught.value) == f"a pair is one chosen and one rejected sequence, but {found}"
