from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from rl_algo_sft_rm.config import RmConfig, SftConfig


def message(model, **fields) -> str:
    with pytest.raises(ValidationError) as error:
        model(name="x", **fields)
    (problem,) = error.value.errors()
    return problem["msg"]


@pytest.mark.parametrize("model", [SftConfig, RmConfig])
def test_long_rows_are_left_out_unless_the_config_says_otherwise(model):
    assert model(name="x").on_long_row == "skip"
    assert model(name="x", on_long_row="error").max_tokens is None, "model.max_length limits as well"


def test_a_negative_or_nameless_margin_is_refused():
    assert message(RmConfig, margin=-0.5) == (
        "Value error, margin -0.5 would ask for a chosen reward below the rejected one"
    )
    assert message(RmConfig, margin="") == (
        "Value error, margin is the name of a row column or a number; an empty name is neither"
    )


def test_a_margin_is_a_number_or_the_name_of_a_column():
    assert RmConfig(name="rm", margin=1).margin == 1.0
    assert RmConfig(name="rm", margin="gap").margin == "gap"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("label_smoothing", 1.0, "Input should be less than 1"),
        ("label_smoothing", -0.1, "Input should be greater than or equal to 0"),
        ("z_loss", -1e-4, "Input should be greater than or equal to 0"),
    ],
)
def test_coefficients_outside_their_range_are_refused(field, value, expected):
    assert message(SftConfig, **{field: value}) == expected


def test_options_of_one_algorithm_are_refused_by_the_other():
    assert message(RmConfig, label_smoothing=0.1) == "Extra inputs are not permitted"
    assert message(SftConfig, margin=0.1) == "Extra inputs are not permitted"


def test_the_plan_of_a_reward_model_says_that_a_pair_is_two_sequences():
    plan = RmConfig(name="rm", pairs_per_step=1000).plan()
    assert (plan.input, plan.rows_per_step, plan.group_size, plan.optimizer_steps) == ("examples", 1000, 1, 1)
    assert plan.notes == ("an example is a pair of sequences: 2,000 sequences per step",)


def test_a_reward_model_is_not_asked_to_generate():
    (problem,) = RmConfig(name="rm").problems(SimpleNamespace(generator="hf"))
    assert str(problem) == (
        "a reward model only scores, so the generator has nothing to generate with\n"
        "    remove the generator and the evaluators that need it; the evaluator 'loss' tests a reward model"
    )
    assert not list(RmConfig(name="rm").problems(SimpleNamespace(generator=None)))


def test_neither_plugin_nor_config_nor_algorithms_load_torch_or_transformers():
    code = (
        "import sys, rl_algo_sft_rm.plugin, rl_algo_sft_rm.config, rl_algo_sft_rm.sft, rl_algo_sft_rm.rm\n"
        "print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
