from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError
from rl_algo_sft_rm.config import SftConfig


def test_on_long_row_without_a_limit_is_refused():
    with pytest.raises(ValidationError) as error:
        SftConfig(name="sft", on_long_row="skip")
    (problem,) = error.value.errors()
    assert problem["msg"] == (
        "Value error, on_long_row has no effect without max_tokens; set max_tokens or remove on_long_row"
    )


def test_every_field_is_described():
    assert [name for name, field in SftConfig.model_fields.items() if not field.description] == []


def test_plugin_and_config_load_neither_torch_nor_transformers():
    code = (
        "import sys, rl_algo_sft_rm.plugin, rl_algo_sft_rm.config, rl_algo_sft_rm.sft\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
