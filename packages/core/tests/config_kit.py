"""Fixtures for configs of the small plugin package; a package that adds to checks imports them into its conftest."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import acme_kit
import pluggy
import pytest
from rl_core import hookspecs
from rl_core.discovery.entry_points import Discovery
from rl_core.discovery.registry import Registry
from rl_core.discovery.status import PluginStatus
from rl_core.preflight.check import CheckResult, check

RUN = """
    model: {path: org/base}
    algorithm: {name: imitate}
    backend: {name: tiny}
    data: {name: lines, path: train.txt}
    run: {name: demo, steps: 10}
"""
"""A complete config; tests append to it or override it."""


@pytest.fixture
def hooks() -> acme_kit.Hooks:
    return acme_kit.Hooks()


@pytest.fixture
def more_plugins() -> tuple[object, ...]:
    """Objects with hooks that count as installed; a package's conftest overrides it with its own plugin."""
    return ()


@pytest.fixture
def registry(hooks: acme_kit.Hooks, more_plugins: tuple[object, ...]) -> Registry:
    """The real registry with one plugin in memory."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(hooks, name="acme-kit:hooks")
    for number, plugin in enumerate(more_plugins):
        manager.register(plugin, name=f"acme-planner:{number}")
    status = PluginStatus("kit", "acme-kit", "1.2", "ok", components=acme_kit.COMPONENTS, module="acme_kit")
    return Registry(Discovery(manager, (status,)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_check(folder, registry) -> Callable[..., CheckResult]:
    """``run_check(yaml, *overrides)`` checks the text as ``c.yaml``."""

    def run(text: str, *overrides: str) -> CheckResult:
        (folder / "c.yaml").write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return check("c.yaml", overrides, registry)

    return run


@pytest.fixture
def problems_of(run_check) -> Callable[..., list[str]]:
    """``problems_of(yaml, *overrides)``: the problems as printed."""
    return lambda text, *overrides: [str(problem) for problem in run_check(text, *overrides).problems]


@pytest.fixture
def config_of(run_check):
    """``config_of(yaml, *overrides)``: the config of a text without problems."""

    def config(text: str, *overrides: str):
        result = run_check(text, *overrides)
        assert [str(problem) for problem in result.problems] == []
        return result.config

    return config


@pytest.fixture
def base() -> str:
    return dedent(RUN).lstrip("\n")
