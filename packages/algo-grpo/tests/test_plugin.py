from __future__ import annotations

import importlib

from rl_algo_grpo import plugin


def test_its_references_lead_to_the_algorithm_and_its_config():
    (component,) = plugin.register_algorithms()
    assert (component.kind, component.name, component.needs) == ("algorithm", "grpo", ("data", "generator", "rewards"))
    for reference, name in ((component.factory, "Grpo"), (component.config, "GrpoConfig")):
        module, _, attribute = reference.partition(":")
        assert getattr(importlib.import_module(module), attribute).__name__ == name


def test_its_loss_can_be_imported_by_a_worker():
    from rl_algo_grpo.config import GrpoConfig
    from rl_algo_grpo.grpo import Grpo

    module, _, function = Grpo(GrpoConfig(name="grpo")).loss(1.0).function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
