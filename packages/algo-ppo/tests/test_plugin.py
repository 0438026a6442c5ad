from __future__ import annotations

import importlib
import subprocess
import sys

from rl_algo_ppo import plugin


def test_its_references_lead_to_the_algorithm_and_its_config():
    (component,) = plugin.register_algorithms()
    assert (component.kind, component.name, component.needs) == ("algorithm", "ppo", ("data", "generator", "rewards"))
    for reference, name in ((component.factory, "Ppo"), (component.config, "PpoConfig")):
        module, _, attribute = reference.partition(":")
        assert getattr(importlib.import_module(module), attribute).__name__ == name


def test_its_losses_can_be_imported_by_a_worker():
    from rl_algo_ppo.config import PpoConfig
    from rl_algo_ppo.ppo import Ppo

    algorithm = Ppo(PpoConfig(name="ppo"))
    for spec in (algorithm.policy_loss(1.0), algorithm.value_loss()):
        module, _, function = spec.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_plugin_config_and_algorithm_load_neither_torch_nor_transformers():
    code = (
        "import sys, rl_algo_ppo.plugin, rl_algo_ppo.config, rl_algo_ppo.ppo\n"
        "print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
