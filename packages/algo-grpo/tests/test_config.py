from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError
from rl_algo_grpo.config import GrpoConfig


def message(**fields) -> str:
    with pytest.raises(ValidationError) as error:
        GrpoConfig(name="grpo", **fields)
    (problem,) = error.value.errors()
    return problem["msg"]


def test_an_estimator_without_a_coefficient_is_refused():
    assert message(kl={"estimator": "k2"}) == (
        "Value error, kl.estimator has no effect while kl.coefficient is 0; "
        "set kl.coefficient above 0 or remove kl.estimator"
    )


def test_a_constant_reduction_needs_its_length():
    assert message(loss_reduction="constant") == (
        "Value error, loss_reduction constant needs constant_length; set it to the generator's max_new_tokens"
    )


def test_a_constant_length_without_a_constant_reduction_is_refused():
    assert message(constant_length=4) == (
        "Value error, constant_length has no effect with loss_reduction token; "
        "set loss_reduction: constant or remove constant_length"
    )


def test_a_ddof_without_a_deviation_is_refused():
    assert message(advantage_scale="none", advantage_ddof=0) == (
        "Value error, advantage_ddof has no effect while advantage_scale is none; remove advantage_ddof"
    )


def test_minibatches_must_share_a_step_out_evenly():
    assert message(prompts_per_step=4, group_size=8, minibatches=3) == (
        "Value error, minibatches 3 does not divide the 32 sequences of a step (prompts_per_step 4 × group_size 8)"
    )


def test_a_group_of_one_is_refused():
    assert message(group_size=1) == "Input should be greater than or equal to 2"


def test_every_field_is_described():
    missing = [name for name, field in GrpoConfig.model_fields.items() if not field.description]
    assert missing == []


def test_plugin_and_config_load_neither_torch_nor_transformers():
    code = (
        "import sys, rl_algo_grpo.plugin, rl_algo_grpo.config, rl_algo_grpo.grpo\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
