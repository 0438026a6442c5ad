"""One conformance suite per kind of component: subclass it in a test module and name the component.

::

    from rl_plugin_kit.suites import RewardConformance

    class TestBrevity(RewardConformance):
        component = "brevity"
        fields = {"target_tokens": 20}

A suite checks what the contract of its kind promises (:mod:`rl_core.contracts`) on a small real instance. What needs a
module or a field that is not there it skips, with the reason; where no tiny run can be made, it fails.
"""

from __future__ import annotations

from rl_plugin_kit.suites.algorithm import AlgorithmConformance
from rl_plugin_kit.suites.backend import BackendConformance
from rl_plugin_kit.suites.base import ComponentConformance
from rl_plugin_kit.suites.data_source import DataSourceConformance
from rl_plugin_kit.suites.environment import EnvironmentConformance
from rl_plugin_kit.suites.evaluator import EvaluatorConformance
from rl_plugin_kit.suites.generator import GeneratorConformance
from rl_plugin_kit.suites.logger import LoggerConformance
from rl_plugin_kit.suites.reward import RewardConformance
from rl_plugin_kit.suites.rollout import RolloutConformance
from rl_plugin_kit.suites.tokenizer import TokenizerConformance

__all__ = [
    "AlgorithmConformance",
    "BackendConformance",
    "ComponentConformance",
    "DataSourceConformance",
    "EnvironmentConformance",
    "EvaluatorConformance",
    "GeneratorConformance",
    "LoggerConformance",
    "RewardConformance",
    "RolloutConformance",
    "TokenizerConformance",
    "suite_of",
]

_SUITES: tuple[type[ComponentConformance], ...] = (
    AlgorithmConformance,
    BackendConformance,
    GeneratorConformance,
    RolloutConformance,
    TokenizerConformance,
    DataSourceConformance,
    RewardConformance,
    EnvironmentConformance,
    EvaluatorConformance,
    LoggerConformance,
)


def suite_of(kind: str) -> type[ComponentConformance]:
    """The suite of a kind of component (:data:`rl_core.component.KINDS`)."""
    return next(suite for suite in _SUITES if suite.kind == kind)
