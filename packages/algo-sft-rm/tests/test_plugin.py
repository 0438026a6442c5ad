from __future__ import annotations

import importlib

from rl_algo_sft_rm import plugin
from rl_algo_sft_rm.sft import LOSS


def test_its_references_lead_to_the_algorithm_its_config_and_its_loss():
    (component,) = plugin.register_algorithms()
    assert (component.kind, component.name, component.needs) == ("algorithm", "sft", ("data",))
    for reference in (component.factory, component.config, LOSS.function):
        module, _, attribute = reference.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
