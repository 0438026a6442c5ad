from __future__ import annotations

import importlib

import pytest
from rl_algo_dpo.config import DpoConfig
from rl_algo_dpo.dpo import Dpo
from rl_plugin_kit.conformance import PluginConformance


class TestPlugin(PluginConformance):
    package = "rl-algo-dpo"


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_its_losses_can_be_imported_by_a_worker(loss, tools):
    batch = tools.ragged_pairs()
    module, _, function = Dpo(DpoConfig(name="dpo", loss=loss)).loss(batch).function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
