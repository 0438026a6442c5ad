"""The promises of its kind, with real engines; those of packages are in ``test_config.py``."""

from typing import ClassVar

import pytest
from rl_plugin_kit.reference import TinyShape
from rl_plugin_kit.suites import GeneratorConformance

pytestmark = pytest.mark.slow

# vLLM's CPU kernels have no heads of size 16, which the kit's own models have.
INIT = {"architecture": "qwen2", "hidden_size": 64, "layers": 1, "heads": 2}


class TestGenerator(GeneratorConformance):
    component = "vllm"
    shape = TinyShape(hidden_size=64)
    sections: ClassVar = {"model": {"init": INIT, "max_length": 32}}
