from __future__ import annotations

import pytest
from pydantic import ValidationError
from rl_algo_dpo.config import DpoConfig
from rl_core.contracts.algorithm import BatchPlan


def problems(**fields) -> dict[str, str]:
    with pytest.raises(ValidationError) as error:
        DpoConfig(name="dpo", **fields)
    return {".".join(map(str, e["loc"])): e["msg"].removeprefix("Value error, ") for e in error.value.errors()}


PAIRS = "sigmoid or robust or ipo or hinge"
INAPPLICABLE = [
    ("orpo", "beta", 0.1, f"{PAIRS} or simpo or kto"),
    ("hinge", "label_smoothing", 0.1, "sigmoid or robust"),
    ("kto", "label_smoothing", 0.1, "sigmoid or robust"),
    ("sigmoid", "target_margin", 1.0, "simpo"),
    ("simpo", "orpo_lambda", 0.1, "orpo"),
    ("sigmoid", "desirable_weight", 1.0, "kto"),
    ("ipo", "undesirable_weight", 1.0, "kto"),
    ("orpo", "sft_coefficient", 0.1, f"{PAIRS} or simpo"),
    ("kto", "sft_coefficient", 0.1, f"{PAIRS} or simpo"),
    ("simpo", "reference", {"path": "org/model"}, f"{PAIRS} or kto"),
    ("orpo", "reference", {"path": "org/model"}, f"{PAIRS} or kto"),
]


@pytest.mark.parametrize(("loss", "field", "value", "losses"), INAPPLICABLE)
def test_a_field_that_the_loss_does_not_read_is_refused_where_it_stands(loss, field, value, losses):
    assert problems(loss=loss, **{field: value}) == {
        field: f"{field} has no effect with loss {loss}; remove it, or set loss to {losses}"
    }


def test_all_inapplicable_fields_are_reported_together():
    found = problems(loss="orpo", beta=0.1, target_margin=1.0, label_smoothing=0.1)
    assert set(found) == {"beta", "target_margin", "label_smoothing"}


@pytest.mark.parametrize("given", [{}, {"label_smoothing": 0.0}])
def test_robust_needs_to_know_the_share_of_swapped_pairs(given):
    assert problems(loss="robust", **given) == {
        "label_smoothing": "loss robust needs label_smoothing above 0, the share of swapped pairs; "
        "without any it is loss sigmoid"
    }


def test_smoothing_away_half_of_the_labels_or_more_is_refused():
    assert problems(label_smoothing=0.5) == {"label_smoothing": "Input should be less than 0.5"}


def test_kto_needs_several_rows_a_step():
    assert problems(loss="kto", pairs_per_step=1) == {
        "pairs_per_step": "loss kto needs pairs_per_step of at least 2, because it joins prompts to the "
        "completions of other rows"
    }


def test_long_rows_are_left_out_unless_the_config_says_otherwise():
    assert DpoConfig(name="dpo").on_long_row == "skip"
    assert DpoConfig(name="dpo", on_long_row="error").max_tokens is None, "model.max_length limits as well"


def test_an_unknown_loss_is_refused_and_nothing_else_is_said():
    assert problems(loss="dpo", beta=0.1) == {
        "loss": "Input should be 'sigmoid', 'robust', 'ipo', 'hinge', 'simpo', 'orpo' or 'kto'"
    }


@pytest.mark.parametrize(
    ("preset", "loss", "options"),
    [
        ("cdpo", "sigmoid", {"beta": 0.1, "label_smoothing": 0.1}),
        ("ipo", "ipo", {"beta": 0.1}),
        ("simpo", "simpo", {"beta": 2.0, "target_margin": 1.0}),
        ("orpo", "orpo", {"orpo_lambda": 0.1}),
        ("kto", "kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
    ],
)
def test_presets_select_the_loss_and_its_usual_numbers(preset, loss, options):
    config = DpoConfig(name="dpo", preset=preset)
    assert (config.loss, config.loss_options()) == (loss, options)


def test_presets_cover_every_named_variant():
    assert set(DpoConfig.presets) == {"cdpo", "ipo", "simpo", "orpo", "kto"}


def test_a_given_field_wins_over_the_preset():
    assert DpoConfig(name="dpo", preset="simpo", beta=2.5).loss_options() == {"beta": 2.5, "target_margin": 1.0}


def test_the_defaults_are_plain_dpo():
    config = DpoConfig(name="dpo")
    assert (config.loss, config.loss_options()) == ("sigmoid", {"beta": 0.1, "label_smoothing": 0.0})


def test_the_plan_shows_the_numbers_the_loss_will_use():
    assert DpoConfig(name="dpo", pairs_per_step=8).plan() == BatchPlan(
        input="examples",
        rows_per_step=8,
        notes=("loss sigmoid with beta 0.1, label_smoothing 0; reference model as the policy starts",),
    )
    assert DpoConfig(name="dpo", reference={"path": "org/model"}, loss="ipo").plan().notes == (
        "loss ipo with beta 0.1; reference model org/model",
    )
    assert DpoConfig(name="dpo", loss="orpo").plan().notes == ("loss orpo with orpo_lambda 0.1; no reference model",)
