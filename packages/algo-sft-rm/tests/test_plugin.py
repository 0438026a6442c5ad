from __future__ import annotations

import importlib

import pytest
from rl_algo_sft_rm import plugin
from rl_algo_sft_rm.config import RmConfig, SftConfig
from rl_algo_sft_rm.rm import RewardModel
from rl_algo_sft_rm.sft import NLL, Sft
from rl_plugin_kit.conformance import PluginConformance


class TestPlugin(PluginConformance):
    package = "rl-algo-sft-rm"


def test_it_offers_sft_and_rm_which_need_data():
    offered = {c.name: (c.kind, c.needs) for c in plugin.register_algorithms()}
    assert offered == {"sft": ("algorithm", ("data",)), "rm": ("algorithm", ("data",))}


@pytest.mark.parametrize(
    "loss",
    [
        NLL,
        Sft(SftConfig(name="sft", label_smoothing=0.1))._loss,
        RewardModel(RmConfig(name="rm"))._loss,
    ],
)
def test_its_losses_can_be_imported_where_they_travel_to(loss):
    module, _, attribute = loss.function.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
