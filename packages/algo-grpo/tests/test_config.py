from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from rl_algo_grpo.config import GrpoConfig
from rl_core.config.sections import GeneratorConfig


def config(**fields) -> GrpoConfig:
    return GrpoConfig(name="grpo", **fields)


def message(**fields) -> str:
    with pytest.raises(ValidationError) as error:
        config(**fields)
    (problem,) = error.value.errors()
    return problem["msg"]


SHAPE = {"mode": "shape", "max_tokens": 10}

WITHOUT_EFFECT = [
    ({"kl": {"estimator": "k2"}}, "kl.estimator", "while kl.coefficient is 0", "set kl.coefficient above 0"),
    ({"kl": {"in": "reward"}}, "kl.in", "while kl.coefficient is 0", "set kl.coefficient above 0"),
    ({"constant_length": 4}, "constant_length", "with loss_reduction token", "set loss_reduction: constant"),
    ({"advantage_scale": "none", "advantage_ddof": 0}, "advantage_ddof", "while advantage_scale is none", ""),
    (
        {"advantage": "reinforce++", "advantage_scale": "std"},
        "advantage_scale",
        "with advantage reinforce++, which whitens over the batch",
        "",
    ),
    (
        {"advantage": "reinforce++-baseline", "advantage_ddof": 1},
        "advantage_ddof",
        "with advantage reinforce++-baseline, which whitens over the batch",
        "",
    ),
    ({"loss": "reinforce", "clip_low": 0.1}, "clip_low", "with loss reinforce", ""),
    ({"loss": "reinforce", "clip_high": 0.1}, "clip_high", "with loss reinforce", ""),
    ({"loss": "gspo", "dual_clip": 3.0}, "dual_clip", "with loss gspo", "set loss: clip"),
    ({"loss": "cispo", "dual_clip": 3.0}, "dual_clip", "with loss cispo", "set loss: clip"),
    (
        {"entropy_coefficient": 0.1, "entropy_metric": True},
        "entropy_metric",
        "with an entropy_coefficient, which logs the entropy anyway",
        "",
    ),
    ({"max_resample_rounds": 3}, "max_resample_rounds", "without dynamic_sampling", "set dynamic_sampling: true"),
    (
        {"overlong": {"max_tokens": 10}},
        "overlong.max_tokens",
        "with overlong.mode none",
        "set overlong.mode: shape",
    ),
    (
        {"overlong": {"mode": "mask", "buffer_tokens": 10}},
        "overlong.buffer_tokens",
        "with overlong.mode mask",
        "set overlong.mode: shape",
    ),
    (
        {"mismatch": {"correction": "icepop", "max": 3.0}},
        "mismatch.max",
        "with mismatch.correction icepop",
        "set mismatch.correction: tis",
    ),
    (
        {"mismatch": {"correction": "tis", "low": 0.1}},
        "mismatch.low",
        "with mismatch.correction tis",
        "set mismatch.correction: icepop or seq-mask",
    ),
    (
        {"mismatch": {"high": 2.0}},
        "mismatch.high",
        "with mismatch.correction none",
        "set mismatch.correction: icepop or seq-mask",
    ),
    (
        {"mismatch": {"correction": "seq-mask", "level": "sequence"}},
        "mismatch.level",
        "with mismatch.correction seq-mask",
        "set mismatch.correction: tis or icepop",
    ),
]


@pytest.mark.parametrize(("fields", "field", "reason", "remedy"), WITHOUT_EFFECT)
def test_a_field_that_would_do_nothing_is_refused(fields, field, reason, remedy):
    advice = f"{remedy} or remove {field}" if remedy else f"remove {field}"
    assert message(**fields) == f"Value error, {field} has no effect {reason}; {advice}"


def test_all_fields_that_would_do_nothing_are_named_at_once():
    assert message(loss="reinforce", clip_low=0.1, max_resample_rounds=2) == (
        "Value error, clip_low has no effect with loss reinforce; remove clip_low\n"
        "    max_resample_rounds has no effect without dynamic_sampling; "
        "set dynamic_sampling: true or remove max_resample_rounds"
    )


def test_null_is_always_allowed_where_it_is_the_default():
    built = config(loss="gspo", dual_clip=None, constant_length=None, mismatch={"max": None})
    assert built.dual_clip is None


def test_a_constant_reduction_needs_its_length():
    assert message(loss_reduction="constant") == (
        "Value error, loss_reduction constant needs constant_length; set it to the generator's max_new_tokens"
    )


def test_shaping_needs_a_length():
    assert message(overlong={"mode": "shape"}) == (
        "Value error, overlong.mode shape needs overlong.max_tokens; set it to the generator's max_new_tokens, "
        "or set overlong.mode: none"
    )


def test_a_buffer_longer_than_the_limit_is_refused():
    assert message(overlong={**SHAPE, "buffer_tokens": 11}) == (
        "Value error, overlong.buffer_tokens 11 must be at most overlong.max_tokens 10"
    )


def test_the_buffer_is_a_fifth_of_the_limit_unless_given():
    assert config(overlong={"mode": "shape", "max_tokens": 20480}).overlong.buffer == 4096
    assert config(overlong={"mode": "shape", "max_tokens": 3}).overlong.buffer == 1
    assert config(overlong={**SHAPE, "buffer_tokens": 7}).overlong.buffer == 7


def test_the_bounds_of_a_correction_have_defaults():
    def bounds(**mismatch):
        return config(mismatch=mismatch).mismatch.bounds

    assert bounds(correction="tis") == (0.0, 2.0)
    assert bounds(correction="tis", max=5) == (0.0, 5.0)
    assert bounds(correction="icepop") == (0.5, 5.0)
    assert bounds(correction="seq-mask") == (0.99, 1.01)
    assert bounds(correction="seq-mask", low=0) == (0.0, 1.01)


def test_an_empty_range_is_refused():
    assert message(mismatch={"correction": "icepop", "low": 6}) == (
        "Value error, mismatch.low 6 must be below mismatch.high 5"
    )


def test_minibatches_must_share_a_step_out_evenly():
    assert message(prompts_per_step=4, group_size=8, minibatches=3) == (
        "Value error, minibatches 3 does not divide the 32 sequences of a step (prompts_per_step 4 × group_size 8)"
    )


@pytest.mark.parametrize("advantage", ["group", "rloo", "reinforce++-baseline"])
def test_a_group_of_one_is_refused_where_groups_are_compared(advantage):
    assert message(group_size=1, advantage=advantage) == (
        f"Value error, advantage {advantage} compares the completions of a prompt, and group_size 1 leaves only one; "
        "set group_size to 2 or more, or advantage: reinforce++"
    )


def test_one_completion_per_prompt_is_enough_for_reinforce_plus_plus():
    assert config(group_size=1, advantage="reinforce++").plan().group_size == 1


def test_dynamic_sampling_needs_groups():
    assert message(group_size=1, advantage="reinforce++", dynamic_sampling=True) == (
        "Value error, dynamic_sampling drops prompts whose completions all got the same reward, which with group_size "
        "1 are all prompts; set group_size to 2 or more, or dynamic_sampling: false"
    )


def test_the_plan_resamples_only_with_dynamic_sampling():
    assert config().plan().max_resample_rounds == 0
    assert config(dynamic_sampling=True).plan().max_resample_rounds == 9
    assert config(dynamic_sampling=True, max_resample_rounds=2).plan().max_resample_rounds == 2


def test_the_plan_says_what_the_number_of_updates_does_to_the_loss():
    never = "one update per step: the ratio to the old policy is 1, so clipping never acts"
    stale = "loss reinforce takes every update of a step as if its completions came from the newest weights"
    assert config().plan().notes == (never,)
    assert config(loss="gspo").plan().notes == (never,)
    assert config(epochs=2).plan().notes == ()
    assert config(loss="reinforce").plan().notes == ()
    assert config(loss="reinforce", epochs=2).plan().notes == (stale,)


def problems(algorithm: GrpoConfig, **generator) -> list[tuple[str, str, str]]:
    fields = GeneratorConfig(name="hf", **{"max_new_tokens": 64, **generator})
    stage = SimpleNamespace(
        generator=SimpleNamespace(config=fields),
        max_completion_tokens=fields.max_new_tokens,
        completion_limit_name="generator.max_new_tokens",
    )
    found = list(algorithm.problems(stage))
    assert all(problem.severity == "warning" for problem in found)
    return [(problem.path, problem.message, problem.fix) for problem in found]


def test_lengths_that_fit_the_generators_are_fine():
    assert problems(config(loss_reduction="constant", constant_length=64)) == []
    assert problems(config(loss_reduction="constant", constant_length=1)) == []
    assert problems(config(overlong={"mode": "shape", "max_tokens": 64})) == []
    assert problems(config()) == []


def test_a_constant_length_other_than_the_generators_is_pointed_out():
    assert problems(config(loss_reduction="constant", constant_length=32)) == [
        (
            "constant_length",
            "constant_length 32 is not generator.max_new_tokens 64",
            "set constant_length: 64, or 1 for sums over tokens",
        )
    ]


def test_a_shaping_length_other_than_the_generators_is_pointed_out():
    assert problems(config(overlong=SHAPE)) == [
        (
            "overlong.max_tokens",
            "overlong.max_tokens 10 is not generator.max_new_tokens 64",
            "set overlong.max_tokens: 64",
        )
    ]
    assert problems(config(overlong={"mode": "shape", "max_tokens": 100})) == [
        (
            "overlong.max_tokens",
            "overlong.max_tokens 100 is not generator.max_new_tokens 64, and no completion gets long enough to be "
            "shaped",
            "set overlong.max_tokens: 64",
        )
    ]


def test_sampling_from_a_part_of_the_vocabulary_is_pointed_out():
    assert problems(config(), top_p=0.9, top_k=50) == [
        (
            "",
            "generator.top_p 0.9 and generator.top_k 50 leave tokens out, but log-probs are those of the full "
            "distribution, so the gradient is biased",
            "set generator.top_p: 1 and generator.top_k: 0",
        )
    ]


def test_every_field_is_described():
    missing = [name for name, field in GrpoConfig.model_fields.items() if not field.description]
    assert missing == []


def test_plugin_and_config_load_neither_torch_nor_transformers():
    code = (
        "import sys, rl_algo_grpo.plugin, rl_algo_grpo.config, rl_algo_grpo.grpo\n"
        "print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
