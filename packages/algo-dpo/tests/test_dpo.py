from __future__ import annotations

import numpy as np
import pytest
from rl_algo_dpo.config import DpoConfig
from rl_algo_dpo.dpo import Dpo
from rl_core.contracts.model import Role
from rl_core.errors import DataError

PAIRS = [
    {"prompt": "ab", "chosen": "cde", "rejected": "fg"},
    {"prompt": "h", "chosen": "i", "rejected": "jkab"},
    {"prompt": "cde", "chosen": "ff", "rejected": "g"},
    {"prompt": "f", "chosen": "ab", "rejected": "ba"},
]
LN2 = 0.6931472
PAIR_METRICS = {
    "loss",
    "preference_accuracy",
    "margin",
    "reward_chosen",
    "reward_rejected",
    "logp_chosen",
    "logp_rejected",
}
WITH_REFERENCE = ["sigmoid", "robust", "ipo", "hinge", "kto"]
LOSSES = [*WITH_REFERENCE, "simpo", "orpo"]


def dpo(loss: str = "sigmoid", **fields) -> Dpo:
    smoothing = {"label_smoothing": 0.1} if loss == "robust" else {}
    return Dpo(DpoConfig(name="dpo", loss=loss, **smoothing, **fields))


def models(tools, **options) -> dict:
    return {"policy": tools.TinyModel(**options), "reference": tools.TinyModel()}


def test_the_reference_is_there_only_for_losses_that_read_it():
    policy = Role("policy", trainable=True)
    for loss in LOSSES:
        expected = (policy, Role("reference", trainable=False)) if loss in WITH_REFERENCE else (policy,)
        assert tuple(dpo(loss).roles()) == expected


def test_the_reference_may_be_a_model_of_its_own():
    assert dpo(reference={"path": "org/model"}).roles()[1] == Role("reference", trainable=False, path="org/model")


def test_rows_become_pairs_that_stay_together(tools):
    batch = dpo().encode(PAIRS[:2], tools.CharTokenizer())
    assert batch.lengths.tolist() == [6, 5, 3, 6]
    assert batch.sequence_columns["unit"].tolist() == [0, 0, 1, 1]
    assert batch.sequence_columns["chosen"].tolist() == [True, False, True, False]


def test_a_pair_that_is_too_long_is_reported(tools):
    with pytest.raises(DataError) as error:
        dpo(max_tokens=5, on_long_row="error").encode(PAIRS, tools.CharTokenizer())
    assert str(error.value) == (
        "row 0 of the batch (chosen): 6 tokens, more than algorithm.max_tokens 5\n"
        "    raise algorithm.max_tokens, or set algorithm.on_long_row to skip or truncate"
    )
    lengths = dpo().encode(PAIRS, tools.CharTokenizer()).lengths.reshape(-1, 2)
    limited = dpo()
    record = limited.limit_rows(5)
    batch = limited.encode(PAIRS, tools.CharTokenizer())
    assert batch.lengths.tolist() == lengths[lengths.max(1) <= 5].ravel().tolist(), "a pair is left out whole"
    assert len(record)


@pytest.mark.parametrize("loss", ["sigmoid", "robust"])
def test_the_first_loss_is_ln_2(loss, tools):
    algorithm = dpo(loss)
    metrics = algorithm.step(algorithm.encode(PAIRS, tools.CharTokenizer()), models(tools))
    assert metrics["train/loss"] == pytest.approx(LN2, abs=1e-7)
    assert metrics["train/margin"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_reports_every_documented_metric(loss, tools):
    algorithm = dpo(loss)
    metrics = algorithm.step(algorithm.encode(PAIRS, tools.CharTokenizer()), models(tools))
    own = {"kto": {"kl"}, "orpo": {"nll_chosen"}}.get(loss, set())
    assert set(metrics) == {f"train/{name}" for name in PAIR_METRICS | own | {"grad_norm", "learning_rate"}}


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_reports_the_same_and_trains_nothing(loss, tools):
    algorithm, both = dpo(loss), models(tools)
    batch = algorithm.encode(PAIRS, tools.CharTokenizer())
    before = [p.clone() for p in both["policy"].parameters]
    evaluated = algorithm.evaluate(batch, both)
    assert all((a == b).all() for a, b in zip(before, both["policy"].parameters, strict=True))
    trained = algorithm.step(batch, both)
    assert {f"train/{name.removeprefix('eval/')}": value for name, value in evaluated.items()} == {
        name: value for name, value in trained.items() if name not in ("train/grad_norm", "train/learning_rate")
    }


def test_the_reference_works_in_the_first_epoch_only(tools, tmp_path):
    algorithm, both = dpo(), models(tools)
    algorithm.start(str(tmp_path))
    batches = [algorithm.encode(rows, tools.CharTokenizer()) for rows in (PAIRS[:2], PAIRS[2:])]
    for batch in batches:
        algorithm.step(batch, both)
    assert both["reference"].forwarded == [4, 4, 4]  # the check of the model, then two passes
    for batch in batches[::-1]:
        algorithm.step(batch, both)
    assert both["reference"].forwarded == [4, 4, 4]
    assert both["policy"].forwarded == []


def test_evaluation_asks_the_reference_once_for_held_out_rows(tools):
    algorithm, both = dpo(), models(tools)
    batch = algorithm.encode(PAIRS, tools.CharTokenizer())
    for _ in range(3):
        algorithm.evaluate(batch, both)
    assert both["reference"].forwarded == [4, 8]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_learning_rate_of_zero_keeps_everything_constant(loss, tools):
    algorithm, both = dpo(loss), models(tools, learning_rate=0.0)
    batch = algorithm.encode(PAIRS, tools.CharTokenizer())
    first, *others = [algorithm.step(batch, both) for _ in range(3)]
    assert others == [first, first]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_update_does_not_depend_on_micro_batches(loss, tools):
    results = []
    for max_tokens in (1000, 14, 1):
        algorithm, both = dpo(loss), models(tools, max_tokens=max_tokens, seed=3)
        metrics = algorithm.step(algorithm.encode(PAIRS, tools.CharTokenizer()), both)
        results.append((metrics, both["policy"].gradient()))
    for metrics, gradient in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_which_completions_are_preferred(loss, tools):
    algorithm, both = dpo(loss), models(tools, learning_rate=0.01)
    batch = algorithm.encode(PAIRS, tools.CharTokenizer())
    metrics = [algorithm.step(batch, both) for _ in range(60)]
    assert metrics[-1]["train/preference_accuracy"] == 1.0
    assert metrics[-1]["train/margin"] > metrics[0]["train/margin"] + 0.2
    assert metrics[-1]["train/loss"] < 0.9 * metrics[0]["train/loss"]


def test_the_sft_term_keeps_the_chosen_completions_likely(tools):
    after = {}
    for coefficient in (0.0, 1.0):
        algorithm, both = dpo(sft_coefficient=coefficient), models(tools, learning_rate=0.01)
        batch = algorithm.encode(PAIRS, tools.CharTokenizer())
        after[coefficient] = [algorithm.step(batch, both) for _ in range(40)][-1]
    assert after[1.0]["train/logp_chosen"] > after[0.0]["train/logp_chosen"] + 1
    assert after[1.0]["train/nll_chosen"] > 0
    assert "train/nll_chosen" not in after[0.0]
