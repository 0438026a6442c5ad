"""``backend: {name: auto}``: every installed backend rates the job, and the best one is written into the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl_core.config.document import Node
from rl_core.config.findings import Findings
from rl_core.config.select import Selected, complete, describe_error
from rl_core.contracts.rating import BackendJob, BackendRating
from rl_core.discovery.lookup import published

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registered, Registry
    from rl_core.discovery.status import HookOutcome


@dataclass(frozen=True)
class RatedBackend:
    """A backend, and what it says about a job."""

    registered: Registered
    rating: BackendRating

    @property
    def label(self) -> str:
        """``"fsdp2 (rl-backend-fsdp2)"``."""
        return f"{self.registered.component.name} ({self.registered.package})"


def choose_backend(
    selected: Selected, job: BackendJob, registry: Registry, findings: Findings
) -> tuple[RatedBackend, ...]:
    """Put the best backend in the place of ``auto``, with the fields it proposes where none were given.

    Returns:
        all ratings, best first; equal ones by name.
    """
    selection = selected.selections["backend"][0]
    name = selection.node.value["name"]
    installed = registry.components("backend")
    if not installed:
        message = "there is no backend for 'auto' to choose: none is installed"
        findings.add(name.where, name.path, message, fix=_how_to_install(registry))
        return ()
    rated = _ranked(installed, _ratings(job, registry, name, findings), job, registry)
    best = rated[0]
    if not best.rating.score:
        reasons = "\n    ".join(f"{one.label}: {'; '.join(one.rating.reasons)}" for one in rated)
        findings.add(name.where, name.path, "no installed backend can run this job", fix=reasons)
        return rated
    selection.node = selected.nodes["backend"] = _resolved(selection.node, best, installed)
    complete(selection, registry, findings)
    return rated


def _ratings(job: BackendJob, registry: Registry, at: Node, findings: Findings) -> dict[tuple[str, str], BackendRating]:
    """``(package, backend)`` → its rating; packages that fail are reported and left out."""
    ratings: dict[tuple[str, str], BackendRating] = {}
    for outcome in registry.call("rate_backends", job=job):
        try:
            found = _checked(outcome, registry)
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            findings.add(
                at.where,
                at.path,
                f"package {outcome.package}: its hook rate_backends failed, so its backends are left out: "
                f"{describe_error(error)}",
                fix=f"this is a fault of the package; try: pip install --upgrade {outcome.package}",
                severity="warning",
            )
            continue
        ratings |= {(outcome.package, rating.name): rating for rating in found}
    return ratings


def _checked(outcome: HookOutcome, registry: Registry) -> list[BackendRating]:
    if outcome.error is not None:
        raise outcome.error
    own = {r.component.name for r in registry.components("backend") if r.package == outcome.package}
    found = list(outcome.result or ())
    for rating in found:
        if not isinstance(rating, BackendRating):
            raise TypeError(f"expected rl_core.contracts.rating.BackendRating, got {type(rating).__name__}")
        if rating.name not in own:
            raise ValueError(f"it rates the backend {rating.name!r}, which the package does not register")
    return found


def _ranked(
    installed: list[Registered],
    ratings: Mapping[tuple[str, str], BackendRating],
    job: BackendJob,
    registry: Registry,
) -> tuple[RatedBackend, ...]:
    rated = []
    for registered in installed:
        name = registered.component.name
        rating = ratings.get((registered.package, name))
        if obstacle := _obstacle(registered, job, registry):
            rating = BackendRating(name, 0, (obstacle,))
        elif rating is None:
            rating = BackendRating(name, 0, (f"does not rate jobs; to use it write name: {name}",))
        rated.append(RatedBackend(registered, rating))
    return tuple(sorted(rated, key=lambda one: (-one.rating.score, one.registered.component.name)))


def _obstacle(registered: Registered, job: BackendJob, registry: Registry) -> str:
    """What keeps a backend from running the job, whatever it says itself; empty if nothing does."""
    if missing := registry.missing_imports(registered.component):
        needs = ", ".join(repr(module) for module in missing)
        return f"needs the Python module {needs}, which is not installed"
    try:
        config: Any = registry.resolve(registered.component.config)
        adapters: frozenset[str] = config.adapters
    except Exception as error:  # noqa: BLE001 - the plugin boundary
        return f"its config cannot be read: {describe_error(error)}"
    if job.adapter is not None and job.adapter.kind not in adapters:
        return f"cannot train {job.adapter.kind} adapters"
    return ""


def _resolved(section: Node, best: RatedBackend, installed: list[Registered]) -> Node:
    """The section as if the user had written the chosen backend and what it proposes."""
    name = section.value["name"]
    component = best.registered.component
    ambiguous = sum(one.component.name == component.name for one in installed) > 1
    chosen = f"{best.registered.package}/{component.name}" if ambiguous else component.name
    proposed = _node(best.rating.config, name, section.path)
    given = {**section.value, "name": replace(name, value=chosen, expression="", secret=False)}
    return _under(proposed, replace(section, value=given))


def _node(value: Any, origin: Node, path: tuple[str | int, ...]) -> Node:
    """Plain data as nodes that stand on the line of ``origin``."""
    content = value
    if isinstance(value, Mapping):
        content = {key: _node(item, origin, (*path, key)) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        content = [_node(item, origin, (*path, index)) for index, item in enumerate(value)]
    return Node(content, origin.where, path, origin.base)


def _under(proposed: Node, given: Node) -> Node:
    """``given`` with its gaps filled from ``proposed``."""
    if not (isinstance(proposed.value, dict) and isinstance(given.value, dict)):
        return given
    merged = dict(proposed.value)
    for key, child in given.value.items():
        merged[key] = _under(merged[key], child) if key in merged else child
    return replace(given, value=merged)


def _how_to_install(registry: Registry) -> str:
    packages = list(dict.fromkeys(published().get("backend", {}).values()))
    unusable = [p for p in registry.plugins if p.package in packages and p.status != "ok"]
    if unusable:
        return "; ".join(f"{p.package} {p.version} is {p.status}: {p.reason}" for p in unusable)
    return " or ".join(f"pip install {package}" for package in packages)
