"""``rl plugin check``: the rules every plugin keeps, checked for an installed package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rl_core.cli.framework import stdout, table
from rl_core.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from rl_core.plugins.registry import Registry


@dataclass(frozen=True)
class Outcome:
    """One rule: its sentence, whether it holds, and if not why."""

    rule: str
    status: Literal["ok", "failed", "skipped"]
    detail: str = ""


def check_command(
    context: typer.Context,
    package: Annotated[str, typer.Argument(metavar="DIST", help="Installed package, e.g. rl-reward-math.")],
) -> None:
    """Check an installed plugin package.

    Exit code 0: every rule holds; 1: one does not; 2: no plugin package of that name is installed.
    """
    find_package(package, context.obj)
    outcomes = list(outcomes_of(package))
    rows = [(one.rule, one.status, one.detail) for one in outcomes]
    stdout().print(table(package, ("rule", "status", "detail"), rows))
    failed = sum(one.status == "failed" for one in outcomes)
    if failed:
        typer.echo(f"{package} breaks {failed} of {len(outcomes)} rules", err=True)
        raise typer.Exit(1)
    skipped = sum(one.status == "skipped" for one in outcomes)
    typer.echo(f"{package} ok" + (f", {skipped} not checked completely" if skipped else ""))


def find_package(package: str, registry: Registry) -> None:
    """Make sure there is something to check.

    Raises:
        ConfigError: no installed distribution of this name has an entry point; names the closest one.
    """
    from packaging.utils import canonicalize_name

    from rl_core.config.suggest import did_you_mean

    installed = sorted({plugin.package for plugin in registry.plugins})
    if canonicalize_name(package) not in installed:
        hint = did_you_mean(package, installed, listing="installed plugins")
        raise ConfigError(f"no plugin package {package!r} is installed\n    {hint}")


def outcomes_of(package: str) -> Iterator[Outcome]:
    """Run every check of :class:`rl_core.testing.conformance.PluginConformance`, in its order.

    Raises:
        EnvironmentProblem: pytest, which the checks are written with, is not installed.
    """
    if importlib.util.find_spec("pytest") is None:
        raise EnvironmentProblem('rl plugin check needs pytest\n    pip install "rl-core[testing]"')
    import pytest

    from rl_core.testing.conformance import PluginConformance

    suite = type("Suite", (PluginConformance,), {"package": package})()
    for name in vars(PluginConformance):
        if not name.startswith("test_"):
            continue
        rule = name.removeprefix("test_").replace("_", " ")
        try:
            getattr(suite, name)()
        except AssertionError as error:
            yield Outcome(rule, "failed", str(error))
        except pytest.skip.Exception as skip:
            yield Outcome(rule, "skipped", str(skip))
        else:
            yield Outcome(rule, "ok")
