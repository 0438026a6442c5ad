import subprocess
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError
from rl_algo_common.applicability import Rule
from rl_algo_common.config import CONSTANT_LENGTH, KlConfig, MismatchConfig, PolicyGradientConfig, RowsConfig
from rl_core.config.sections import GeneratorConfig


class Family(PolicyGradientConfig):
    """An algorithm with presets, a default and a rule of its own."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sums": {"loss_reduction": "constant", "constant_length": 1},
        "safe": {"mismatch": {"correction": "icepop", "low": 0.8}},
    }
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("clip_low", "clip_high"), lambda c: c.clips, "while clips is {c.clips}", "set clips: true or remove {key}"
        ),
        CONSTANT_LENGTH,
    )
    group_size: int = Field(4, ge=1, description="")
    clips: bool = Field(True, description="")


def config(**fields) -> PolicyGradientConfig:
    return PolicyGradientConfig(name="x", **fields)


def error(make=config, **fields) -> tuple[tuple, str]:
    with pytest.raises(ValidationError) as raised:
        make(**fields)
    (problem,) = raised.value.errors()
    return problem["loc"], problem["msg"].removeprefix("Value error, ")


def family(**fields) -> Family:
    return Family(name="x", **fields)


def test_a_step_is_prompts_times_completions_and_its_updates_epochs_times_minibatches():
    built = config(prompts_per_step=6, group_size=4, minibatches=3, epochs=2)
    assert (built.sequences_per_step, built.updates_per_step) == (24, 6)
    plan = built.plan()
    assert (plan.input, plan.rows_per_step, plan.group_size, plan.optimizer_steps) == ("rollouts", 6, 4, 6)
    assert plan.notes == ()
    assert config().plan().notes == ("one update per step: the ratio to the old policy is 1, so clipping never acts",)


def test_an_algorithm_may_have_defaults_of_its_own():
    assert (family().group_size, family(group_size=2).group_size) == (4, 2)


def test_minibatches_must_share_a_step_out_evenly():
    assert error(prompts_per_step=4, group_size=8, minibatches=3) == (
        (),
        "minibatches 3 does not divide the 32 sequences of a step (prompts_per_step 4 × group_size 8)",
    )


def test_a_constant_reduction_needs_its_length():
    assert error(loss_reduction="constant") == (
        (),
        "loss_reduction constant needs constant_length; set it to the generator's max_new_tokens",
    )


def test_all_fields_that_would_do_nothing_are_named_at_once():
    fields = {"entropy_coefficient": 0.1, "entropy_metric": False, "constant_length": 4}
    assert error(**fields, mismatch={"correction": "tis", "max": 3.0, "high": 2.0}) == (
        (),
        "constant_length has no effect with loss_reduction token; "
        "set loss_reduction: constant or remove constant_length\n"
        "    entropy_metric has no effect with an entropy_coefficient, which logs the entropy anyway; "
        "remove entropy_metric\n"
        "    mismatch.high has no effect with mismatch.correction tis; "
        "set mismatch.correction: icepop or seq-mask or remove mismatch.high",
    )


@pytest.mark.parametrize(
    ("mismatch", "field", "remedy"),
    [
        ({"correction": "none", "max": 3.0}, "max", "tis"),
        ({"correction": "icepop", "max": 3.0}, "max", "tis"),
        ({"correction": "tis", "low": 0.1}, "low", "icepop or seq-mask"),
        ({"correction": "none", "high": 2.0}, "high", "icepop or seq-mask"),
        ({"correction": "seq-mask", "level": "sequence"}, "level", "tis or icepop"),
    ],
)
def test_a_mismatch_field_that_would_do_nothing_is_refused(mismatch, field, remedy):
    assert error(mismatch=mismatch)[1] == (
        f"mismatch.{field} has no effect with mismatch.correction {mismatch['correction']}; "
        f"set mismatch.correction: {remedy} or remove mismatch.{field}"
    )


def test_null_counts_as_not_given():
    assert config(constant_length=None, mismatch={"max": None}).mismatch == MismatchConfig(max=None)


def test_what_a_preset_gave_is_never_objected_to():
    assert family(preset="sums", loss_reduction="token").constant_length == 1
    assert family(preset="safe", mismatch={"correction": "tis"}).mismatch.bounds == (0.0, 2.0)
    assert error(family, preset="sums", loss_reduction="token", constant_length=2)[1] == (
        "constant_length has no effect with loss_reduction token; "
        "set loss_reduction: constant or remove constant_length"
    )
    assert error(family, preset="safe", mismatch={"correction": "tis", "low": 0.5})[1] == (
        "mismatch.low has no effect with mismatch.correction tis; "
        "set mismatch.correction: icepop or seq-mask or remove mismatch.low"
    )


def test_an_algorithm_may_have_rules_of_its_own():
    assert error(family, clips=False, clip_low=0.1)[1] == (
        "clip_low has no effect while clips is False; set clips: true or remove clip_low"
    )
    assert family(clip_low=0.1).clip_low == 0.1


@pytest.mark.parametrize(
    ("mismatch", "bounds"),
    [
        ({"correction": "tis"}, (0.0, 2.0)),
        ({"correction": "tis", "max": 5}, (0.0, 5.0)),
        ({"correction": "icepop"}, (0.5, 5.0)),
        ({"correction": "seq-mask"}, (0.99, 1.01)),
        ({"correction": "seq-mask", "low": 0}, (0.0, 1.01)),
    ],
)
def test_bounds_that_are_not_given_have_defaults(mismatch, bounds):
    assert MismatchConfig(**mismatch).bounds == bounds


def test_an_empty_range_is_refused_at_its_section():
    assert error(mismatch={"correction": "icepop", "low": 6}) == (
        ("mismatch",),
        "mismatch.low 6 must be below mismatch.high 5",
    )


def test_the_loss_is_given_what_the_fields_say():
    built = config(clip_high=0.3, dual_clip=3.0, loss_reduction="constant", constant_length=8, entropy_coefficient=0.1)
    spec = built.loss_spec("package.loss:policy_loss", temperature=0.7, beta=2.0)
    assert (spec.function, spec.temperature, spec.outputs) == (
        "package.loss:policy_loss",
        0.7,
        ("logprobs", "entropy"),
    )
    assert spec.options == {
        "clip_low": 0.2,
        "clip_high": 0.3,
        "dual_clip": 3.0,
        "reduction": "constant",
        "constant_length": 8,
        "entropy_coefficient": 0.1,
        "mismatch": {"correction": "none", "level": "token", "low": 0.99, "high": 1.01},
        "beta": 2.0,
    }


def test_the_entropy_is_computed_only_where_it_is_wanted():
    assert config().loss_spec("m:f", temperature=1.0).outputs == ("logprobs",)
    assert config(entropy_metric=True).loss_spec("m:f", temperature=1.0).outputs == ("logprobs", "entropy")


def warnings(algorithm: PolicyGradientConfig, *, max_new_tokens: int = 64, **sampling) -> list[tuple[str, str, str]]:
    generator = GeneratorConfig(name="any", max_new_tokens=max_new_tokens, **sampling)
    stage = SimpleNamespace(
        generator=SimpleNamespace(config=generator),
        max_completion_tokens=max_new_tokens,
        completion_limit_name="generator.max_new_tokens",
    )
    problems = algorithm.problems(stage)
    return [(p.path, p.message, p.fix) for p in problems if p.severity == "warning"]


def test_what_fits_the_generator_is_fine():
    assert warnings(config()) == []
    assert warnings(config(loss_reduction="constant", constant_length=64)) == []
    assert warnings(config(loss_reduction="constant", constant_length=1)) == []
    assert list(config().problems(SimpleNamespace(generator=None, environment=None))) == []


def test_a_constant_length_other_than_the_generators_is_pointed_out():
    assert warnings(config(loss_reduction="constant", constant_length=32)) == [
        (
            "constant_length",
            "constant_length 32 is not generator.max_new_tokens 64",
            "set constant_length: 64, or 1 for sums over tokens",
        )
    ]


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (1.0, 50)])
def test_sampling_from_a_part_of_the_vocabulary_is_pointed_out(top_p, top_k):
    assert warnings(config(), top_p=top_p, top_k=top_k) == [
        (
            "",
            f"generator.top_p {top_p:g} and generator.top_k {top_k} leave tokens out, but log-probs are those of the "
            "full distribution, so the gradient is biased",
            "set generator.top_p: 1 and generator.top_k: 0",
        )
    ]


def test_every_field_is_described():
    for model in (PolicyGradientConfig, MismatchConfig, KlConfig, RowsConfig):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_importing_it_loads_neither_torch_nor_ray():
    code = "import sys, rl_algo_common.config\nprint({'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
