from __future__ import annotations

import types

import pytest
from pydantic import ValidationError
from rl_algo_ppo.config import PpoConfig


def message(**fields) -> str:
    with pytest.raises(ValidationError) as error:
        PpoConfig(name="ppo", **fields)
    (problem,) = error.value.errors()
    return problem["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize("field", ["estimator", "controller", "target", "horizon"])
def test_kl_fields_without_a_coefficient_are_refused(field):
    value = {"estimator": "k2", "controller": "adaptive", "target": 6.0, "horizon": 100}[field]
    assert message(kl={field: value}) == (
        f"kl.{field} has no effect while kl.coefficient is 0; set kl.coefficient above 0 or remove kl.{field}"
    )


@pytest.mark.parametrize(("field", "value"), [("target", 6.0), ("horizon", 100)])
def test_fields_of_the_adaptive_controller_are_refused_with_the_fixed_one(field, value):
    assert message(kl={"coefficient": 0.1, field: value}) == (
        f"kl.{field} has no effect with kl.controller fixed; set kl.controller: adaptive or remove kl.{field}"
    )


def test_the_adaptive_controller_needs_a_target():
    assert message(kl={"coefficient": 0.1, "controller": "adaptive"}) == (
        "kl.controller adaptive needs kl.target, the KL per completion in nats, e.g. 6.0"
    )


def test_a_constant_reduction_needs_its_length():
    assert message(loss_reduction="constant") == (
        "loss_reduction constant needs constant_length; set it to the generator's max_new_tokens"
    )


def test_a_constant_length_without_a_constant_reduction_is_refused():
    assert message(constant_length=4) == (
        "constant_length has no effect with loss_reduction token; "
        "set loss_reduction: constant or remove constant_length"
    )


def test_minibatches_must_share_a_step_out_evenly():
    assert message(prompts_per_step=4, group_size=8, minibatches=3) == (
        "minibatches 3 does not divide the 32 sequences of a step (prompts_per_step 4 × group_size 8)"
    )


def test_asking_for_the_entropy_twice_is_refused():
    assert message(entropy_coefficient=0.01, entropy_metric=True) == (
        "entropy_metric has no effect with an entropy_coefficient, which logs the entropy anyway; remove entropy_metric"
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"max": 2.0},
            "mismatch.max has no effect with mismatch.correction none; set mismatch.correction: tis or remove "
            "mismatch.max",
        ),
        (
            {"correction": "tis", "low": 0.5},
            "mismatch.low has no effect with mismatch.correction tis; set mismatch.correction: icepop or seq-mask or "
            "remove mismatch.low",
        ),
        (
            {"correction": "seq-mask", "level": "sequence"},
            "mismatch.level has no effect with mismatch.correction seq-mask; set mismatch.correction: tis or icepop "
            "or remove mismatch.level",
        ),
        ({"correction": "icepop", "low": 6.0}, "mismatch.low 6 must be below mismatch.high 5"),
    ],
)
def test_mismatch_fields_that_do_nothing_are_refused(fields, expected):
    assert message(mismatch=fields) == expected


@pytest.mark.parametrize("fields", [{"gamma": 1.1}, {"lam": -0.1}, {"value": {"clip": 0}}, {"dual_clip": 1.0}])
def test_numbers_out_of_range_are_refused(fields):
    assert message(**fields).startswith("Input should be")


def test_null_counts_as_not_given():
    config = PpoConfig(
        name="ppo", constant_length=None, kl={"coefficient": 0.1, "target": None}, mismatch={"max": None}
    )
    assert config.kl.coefficient == 0.1


def test_the_plan_counts_the_policy_s_optimizer_steps():
    plan = PpoConfig(name="ppo", prompts_per_step=8, group_size=2, minibatches=4, epochs=3).plan()
    assert (plan.input, plan.rows_per_step, plan.group_size, plan.optimizer_steps) == ("rollouts", 8, 2, 12)
    assert plan.notes == ("the value model takes as many optimizer steps as the policy",)
    assert PpoConfig(name="ppo", minibatches=1).plan().notes[1] == (
        "one update per step: the ratio to the old policy is 1, so clipping never acts"
    )


def stage(**generator):
    fields = {"max_new_tokens": 8, "top_p": 1.0, "top_k": 0, **generator}
    return types.SimpleNamespace(
        generator=types.SimpleNamespace(config=types.SimpleNamespace(**fields)),
        max_completion_tokens=fields["max_new_tokens"],
        completion_limit_name="generator.max_new_tokens",
    )


def test_sampling_that_leaves_tokens_out_is_pointed_out():
    (problem,) = PpoConfig(name="ppo").problems(stage(top_p=0.9))
    assert (problem.severity, problem.message) == (
        "warning",
        "generator.top_p 0.9 and generator.top_k 0 leave tokens out, but log-probs are those of the full "
        "distribution, so the gradient is biased",
    )
    assert not list(PpoConfig(name="ppo").problems(stage()))


def test_a_constant_length_other_than_the_generator_s_is_pointed_out():
    (problem,) = PpoConfig(name="ppo", loss_reduction="constant", constant_length=4).problems(stage())
    assert (problem.path, problem.message, problem.fix) == (
        "constant_length",
        "constant_length 4 is not generator.max_new_tokens 8",
        "set constant_length: 8, or 1 for sums over tokens",
    )


def test_every_field_is_described():
    from rl_algo_ppo.config import AdaptiveKlConfig, ValueConfig

    for model in (PpoConfig, AdaptiveKlConfig, ValueConfig):
        assert [name for name, field in model.model_fields.items() if not field.description] == []
