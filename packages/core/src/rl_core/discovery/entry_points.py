"""From installed distributions to registered plugins, one phase after the other.

Read metadata → blocklist → version check → import the light module → register its hooks → call its
``register_*`` hooks. A plugin that fails a phase is listed with the reason and left out; it never
takes the others down. ``PluginManager.load_setuptools_entrypoints`` is not used: it imports
everything at once, before any check, and lets one broken plugin stop the program.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pluggy

from rl_core import hookspecs
from rl_core.component import Component
from rl_core.discovery.containment import contained, watched
from rl_core.discovery.metadata import Candidate, Selection, candidates, core_version, incompatibility
from rl_core.discovery.status import PluginStatus, Status, describe
from rl_core.discovery.trace import Trace

REGISTER_HOOKS = {
    "register_algorithms": "algorithm",
    "register_backends": "backend",
    "register_generators": "generator",
    "register_rollouts": "rollout",
    "register_tokenizers": "tokenizer",
    "register_data_sources": "data_source",
    "register_rewards": "reward",
    "register_environments": "environment",
    "register_evaluators": "evaluator",
    "register_loggers": "logger",
}
"""Registration hook → the kind of component it offers."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Discovery:
    """The hooks of the plugins that are ok, and the status of all."""

    manager: pluggy.PluginManager
    plugins: tuple[PluginStatus, ...]


class _Defect(Exception):
    """Ends the discovery of one plugin; ``components`` is what it offered until then."""

    def __init__(self, status: Status, reason: str, components: tuple[Component, ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.components = components


def discover(environ: Mapping[str, str] | None = None) -> Discovery:
    """Find and register every installed plugin.

    Args:
        environ: read for ``RL_PLUGINS``, ``RL_DISABLE_PLUGINS`` and ``RL_TRACE_PLUGINS``; default: ``os.environ``.

    Raises:
        EnvironmentProblem: rl-core itself is not installed as a distribution.
    """
    environ = os.environ if environ is None else environ
    trace = Trace(environ.get("RL_TRACE_PLUGINS") == "1")
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with trace.phase("read metadata"):
        found = candidates()
        core = core_version()
    selection = Selection.from_environ(environ)
    selection.warn_unknown(found)
    with watched():
        return Discovery(manager, tuple(_load(manager, one, selection, core, trace) for one in found))


def package_of(implementation: pluggy.HookImpl) -> str:
    """The distribution a registered hook implementation belongs to."""
    return implementation.plugin_name.partition(":")[0]


def invoke(implementation: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Any:
    """Call one implementation with the arguments it takes; an iterator is run to its end here, not by the caller."""
    result = implementation.function(*[arguments[name] for name in implementation.argnames])
    return list(result) if isinstance(result, Iterator) else result


def _load(
    manager: pluggy.PluginManager, candidate: Candidate, selection: Selection, core: str, trace: Trace
) -> PluginStatus:
    status: Status = "ok"
    reason = ""
    try:
        components = _phases(manager, candidate, selection, core, trace)
    except _Defect as defect:
        status, reason, components = defect.status, defect.reason, defect.components
    return PluginStatus(
        candidate.name, candidate.package, candidate.version, status, reason, components, candidate.module
    )


def _phases(
    manager: pluggy.PluginManager, candidate: Candidate, selection: Selection, core: str, trace: Trace
) -> tuple[Component, ...]:
    package = candidate.package
    if reason := selection.blocked(package):
        raise _Defect("blocked", reason)
    if candidate.defect:
        raise _Defect("broken", candidate.defect)
    with trace.phase("check version", package=package):
        if reason := incompatibility(candidate, core):
            raise _Defect("incompatible", reason)
    with trace.phase(f"import {candidate.module}", package=package):
        plugin = _import(candidate)
    name = f"{package}:{candidate.name}"
    with trace.phase("register hooks", package=package):
        _register(manager, plugin, name, candidate.module)
        try:
            return _collect(manager, name)
        except _Defect:
            manager.unregister(name=name)
            raise


def _import(candidate: Candidate) -> Any:
    assert candidate.entry_point is not None
    try:
        with contained(candidate.package, f"importing {candidate.module}"):
            return candidate.entry_point.load()
    except KeyboardInterrupt:
        raise
    # SystemExit too: a module that calls sys.exit() must not end every `rl` command.
    except BaseException as error:
        raise _Defect("broken", f"importing {candidate.module} failed: {describe(error)}") from error


def _register(manager: pluggy.PluginManager, plugin: Any, name: str, module: str) -> None:
    if manager.is_registered(plugin):
        first = (manager.get_name(plugin) or "").partition(":")[0]
        raise _Defect("broken", f"{module} is already registered by {first}; an entry point names it twice")
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        manager.unregister(name=name)
        # pluggy's message spans lines: plugin, hook, definition, then the sentence that matters.
        raise _Defect("broken", f"hook signature: {str(error).splitlines()[-1].strip()}") from error
    callers = manager.get_hookcallers(plugin) or []
    defect = "" if callers else f"{module} implements no hook; mark functions with rl_core.hookspecs.hookimpl"
    hooks = [hook for hook in vars(hookspecs) if hook.startswith(("register_", "validate_", "rate_", "on_"))]
    for caller in callers:
        implementations = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
        if not caller.has_spec() and not all(impl.optionalhook for impl in implementations):
            close = get_close_matches(caller.name, hooks, n=1)
            defect = f"unknown hook {caller.name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        elif any(impl.hookwrapper or impl.wrapper for impl in implementations):
            defect = f"{caller.name} is a hook wrapper; plugins are called one by one, so wrappers are not supported"
    if defect:
        manager.unregister(name=name)
        raise _Defect("broken", defect)


def _collect(manager: pluggy.PluginManager, name: str) -> tuple[Component, ...]:
    """Call one plugin's registration hooks and check what they return."""
    components: list[Component] = []
    for hook, kind in REGISTER_HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if implementation.plugin_name != name:
                continue
            try:
                with contained(package_of(implementation), hook):
                    result = invoke(implementation, {})
                    offered = [] if result is None else list(result)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise _Defect("broken", f"{hook} failed: {describe(error)}", tuple(components)) from error
            for one in offered:
                if reason := _component_defect(one, kind):
                    raise _Defect("broken", f"{hook}: {reason}", tuple(components))
                components.append(one)
    counts = Counter((one.kind, one.name) for one in components)
    for (kind, twice), count in counts.items():
        if count > 1:
            raise _Defect("broken", f"it offers the {kind} {twice!r} {count} times", tuple(components))
    return tuple(components)


def _component_defect(offered: Any, kind: str) -> str:
    if not isinstance(offered, Component):
        return f"expected rl_core.component.Component, got {type(offered).__name__}"
    if offered.kind != kind:
        return f"{offered.name!r} is of kind {offered.kind!r}, expected {kind!r}"
    if not isinstance(offered.name, str) or not _NAME.fullmatch(offered.name):
        return f"{offered.name!r} is not a usable name (letters, digits, '_', '.', '-')"
    return ""
