"""The plugin module: what it registers and what it costs to import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.plugin import register_generators


def test_the_component_points_at_what_exists():
    from importlib import import_module

    (component,) = register_generators()
    assert (component.kind, component.name, component.imports) == ("generator", "hf", ("torch", "transformers"))
    for reference in (component.factory, component.config):
        module, _, attribute = reference.partition(":")
        assert hasattr(import_module(module), attribute)


def test_plugin_and_config_import_neither_torch_nor_transformers():
    code = (
        "import sys, rl_generation_hf.plugin as p, rl_generation_hf.config; p.register_generators();"
        "print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_defaults_are_float32_and_64k_tokens():
    config = HfGeneratorConfig(name="hf")
    assert (config.dtype, config.max_batch_tokens) == ("float32", 65536)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValidationError, match="Input should be 'float32' or 'bfloat16'"):
        HfGeneratorConfig(name="hf", dtype="float16")


def test_every_field_has_a_description():
    assert all(field.description for field in HfGeneratorConfig.model_fields.values())
