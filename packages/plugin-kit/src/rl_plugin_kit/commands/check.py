"""``rl plugin check``: the rules that an installed package keeps, and what each of its components promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rl_core.cli.framework import stdout, table
from rl_core.errors import ConfigError

if TYPE_CHECKING:
    from rl_core.component import Component
    from rl_core.discovery.registry import Registry

    from rl_plugin_kit.outcome import Outcome


def check_command(
    context: typer.Context,
    package: Annotated[str, typer.Argument(metavar="DIST", help="Installed package, e.g. rl-reward-math.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the rules of the package: build and run no component.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.FIELD=VALUE", help="A value for a field without a default; repeatable."),
    ] = None,
) -> None:
    """Check an installed plugin package.

    First the rules of every package, then for each component what its kind promises, in this process, in a Ray
    worker and in a tiny run on CPU. Ray is started, unless RAY_ADDRESS names a cluster.

    Exit code 0: every rule holds; 1: one does not; 2: no plugin package of that name is installed.
    """
    components = find_package(package, context.obj)
    fields = parse_settings(settings or [], components)
    require_valid(fields, components, context.obj)
    tables = list(tables_of(package, [] if quick else components, fields))
    found = [outcome for _, outcomes in tables for outcome in outcomes]
    failed = sum(one.status == "failed" for one in found)
    if failed:
        typer.echo(f"{package} breaks {failed} of {len(found)} rules", err=True)
        raise typer.Exit(1)
    skipped = sum(one.status == "skipped" for one in found)
    typer.echo(f"{package} ok" + (f", {skipped} not checked completely" if skipped else ""))


def find_package(package: str, registry: Registry) -> list[Component]:
    """The components that ``package`` offers; those of a plugin that is not ok cannot be checked.

    Raises:
        ConfigError: no installed distribution of this name has an entry point; names the closest one.
    """
    from packaging.utils import canonicalize_name
    from rl_core.config.suggest import did_you_mean

    installed = sorted({plugin.package for plugin in registry.plugins})
    if canonicalize_name(package) not in installed:
        hint = did_you_mean(package, installed, listing="installed plugins")
        raise ConfigError(f"no plugin package {package!r} is installed\n    {hint}")
    return [one.component for one in registry.components() if one.package == canonicalize_name(package)]


def parse_settings(given: Sequence[str], components: Sequence[Component]) -> dict[str, dict[str, Any]]:
    """``length.target=3`` → ``{"length": {"target": 3}}``; values are YAML.

    Raises:
        ConfigError: not of that form, or there is no such component.
    """
    import yaml

    names = [name for one in components for name in (one.name, f"{one.kind}/{one.name}")]
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        place, equals, value = text.partition("=")
        name, dot, field = place.partition(".")
        if not (equals and dot and name and field):
            raise ConfigError(
                f"--set {text!r} is not of the form NAME.FIELD=VALUE\n    for example --set jsonl.path=rows.jsonl"
            )
        if name not in names:
            raise ConfigError(f"--set {text!r}: there is no component {name!r}\n    it offers: {', '.join(names[::2])}")
        found.setdefault(name, {})[field] = yaml.safe_load(value)
    return found


def require_valid(fields: Mapping[str, Mapping[str, Any]], components: Sequence[Component], registry: Registry) -> None:
    """Make sure that what is wrong with ``--set`` is not blamed on the plugin.

    Raises:
        ConfigError: the fields are no valid config; names the first that is wrong.
    """
    from pydantic import ValidationError

    from rl_plugin_kit.building import given_to

    for component in components:
        if given := given_to(component, fields):
            try:
                registry.resolve(component.config)(name=component.name, **given)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in (component.name, *first["loc"]))
                raise ConfigError(f"--set: {place}: {first['msg']}\n    `rl schema` has all fields") from error


def tables_of(
    package: str, components: Sequence[Component], fields: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, list[Outcome]]]:
    """Run and show the package's rules, then the suite of each component; yields what was found."""
    from rl_plugin_kit.conformance import PluginConformance
    from rl_plugin_kit.outcome import outcomes

    suite: type = type("Suite", (PluginConformance,), {"package": package, "settings": fields})
    yield package, _show(package, outcomes(suite))
    if not components:
        return
    from rl_plugin_kit.building import given_to
    from rl_plugin_kit.ray_worker import ray_for_checks
    from rl_plugin_kit.suites import suite_of

    with ray_for_checks():
        for component in components:
            names = {"component": f"{package}/{component.name}", "fields": given_to(component, fields)}
            title = f"{component.kind.replace('_', ' ')} {component.name}"
            yield title, _show(title, outcomes(type("Suite", (suite_of(component.kind),), names)))


def _show(title: str, outcomes: Iterator[Outcome]) -> list[Outcome]:
    found = list(outcomes)
    rows = [(one.rule, one.status, one.detail) for one in found]
    stdout().print(table(title, ("rule", "status", "detail"), rows))
    return found
