"""Checks that look at more than one section: what is missing, what nothing reads, what plugins object to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rl_core.cluster.ray_address import ray_address
from rl_core.component import SECTIONS
from rl_core.config.compose import LISTS, REQUIRED
from rl_core.config.document import Node
from rl_core.config.environment import EnvironmentConfig
from rl_core.config.findings import Findings
from rl_core.config.generators import gpus_on_this_machine, has_own_gpus, placement_problems
from rl_core.config.paths import function_references
from rl_core.config.problems import Problem
from rl_core.config.select import KIND_OF, Selected, Selection, describe_error, report_crash
from rl_core.config.stage import StageConfig
from rl_core.config.typed_secrets import check_typed
from rl_core.machine import Machine
from rl_core.network import describe, interfaces

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry

logger = logging.getLogger(__name__)

ALWAYS_READ = frozenset({"model", "run", "algorithm", "backend", "tokenizer", "data", "evaluators", "loggers"})
_EXAMPLE = {"model": "model: {path: …}", "run": "run: {steps: 100}"}


def sections_read(selected: Selected) -> frozenset[str]:
    """The sections that the stage's components read, directly or through a section that is itself read."""
    read: set[str] = set()
    waiting = set(ALWAYS_READ)
    while waiting:
        section = waiting.pop()
        read.add(section)
        if section == "generator":  # what is generated goes through the environment, whoever asked for it
            waiting |= {"environment"} - read
        if section in ("generator", "environment", "rewards"):
            waiting |= {"rollout"} - read
        for selection in selected.selections.get(section, ()):
            if selection.registered is not None:
                component = selection.registered.component
                waiting |= {*component.needs, *component.uses} - read
    return frozenset(read)


def check_required(stages: Sequence[Selected], root: Node, findings: Findings) -> None:
    """Sections without which there is no run."""
    for section in REQUIRED:
        lacking = [stage for stage in stages if section not in stage.nodes]
        fix = _EXAMPLE.get(section, f"{section}: {{name: …}}")
        if len(lacking) == len(stages):
            findings.add(root.where, (section,), f"the section {section!r} is missing", fix=fix)
            continue
        for stage in lacking:
            message = f"the section {section!r} is missing in stage {stage.tree.name!r}"
            findings.add(stage.tree.root.where, (*stage.tree.path, section), message, fix=fix)


def check_needs(selected: Selected, read: frozenset[str], registry: Registry, findings: Findings) -> None:
    """Every section that a selected component needs is there."""
    for section in SECTIONS:
        if section not in read:
            continue
        for selection in selected.selections.get(section, ()):
            if selection.registered is None:
                continue
            for need in selection.registered.component.needs:
                # The required sections and the tokenizer have messages of their own.
                if need in (*REQUIRED, "tokenizer") or (need == "rewards" and _environment_rewards(selected)):
                    continue
                if not _given(selected, need):
                    message = f"{selection.what} needs the section {need!r}"
                    findings.add(
                        selection.node.where, selection.node.path, message, fix=_section_example(need, registry)
                    )


def check_unread(stages: Sequence[Selected], reads: Sequence[frozenset[str]], registry: Registry) -> Findings:
    """Sections that no selected component needs or uses: their keys would silently do nothing."""
    findings = Findings()
    for stage, read in zip(stages, reads, strict=True):
        for section, node in stage.nodes.items():
            if section in read or not _given(stage, section):
                continue
            own = section in stage.tree.own
            if not own and any(section in other and section in s.nodes for s, other in zip(stages, reads, strict=True)):
                continue
            scope = f"nothing in stage {stage.tree.name!r} reads" if own else "nothing reads"
            if section == "eval_data" and not _given(stage, "evaluators"):
                message = f"{scope} 'eval_data': there are no evaluators"
                fix = f"{_section_example('evaluators', registry)}; or remove 'eval_data'"
            elif section in ("environment", "rollout"):
                message = f"{scope} {section!r}: no selected component generates"
                fix = "choose an algorithm that trains on rollouts, such as grpo, or remove it"
            else:
                message = f"{scope} the section {section!r}: no selected component needs or uses it"
                fix = "remove it, or set it to null in this stage" if stage.tree.path else "remove it"
            findings.add(node.where, node.path, message, fix=fix)
    return findings


def check_secrets(selected: Selected, findings: Findings) -> None:
    """Secrets that are typed into the config, and those that an older version removed from it."""
    for node in selected.nodes.values():
        check_typed(node, findings)


def check_plans(selected: Selected, stage: StageConfig, findings: Findings) -> None:
    """The algorithm's batch plan and the backend's number of ranks can be computed."""
    algorithm, backend = selected.selections["algorithm"][0], selected.selections["backend"][0]
    _guarded(algorithm, findings, "plan()", lambda: stage.algorithm.config.plan())  # type: ignore[attr-defined]
    gpus = stage.run.nodes * stage.run.gpus
    _guarded(backend, findings, "world_size()", lambda: stage.backend.config.world_size(gpus))  # type: ignore[attr-defined]


def check_adapter(selected: Selected, stage: StageConfig, findings: Findings) -> None:
    """The backend can train the adapter that the model asks for."""
    adapter = stage.model.adapter
    if adapter is None:
        return
    can: frozenset[str] = stage.backend.config.adapters
    if adapter.name not in can:
        node = selected.nodes["model"]
        where = node.get("adapter") or node
        findings.add(
            where.where,
            where.path,
            f"the backend {stage.backend.name!r} cannot train {adapter.name} adapters",
            fix=f"choose {' or '.join(sorted(can))}" if can else "remove model.adapter, or choose another backend",
        )


def check_staleness(selected: Selected, stage: StageConfig, findings: Findings) -> None:
    """Sampling ahead of training and training share no GPU."""
    if stage.generator is None or not (stage.run.max_staleness and stage.run.gpus) or has_own_gpus(stage):
        return
    node = selected.nodes["run"].get("max_staleness") or selected.nodes["run"]
    findings.add(
        node.where,
        node.path,
        f"rollouts cannot be sampled while the same GPUs train (run.gpus: {stage.run.gpus}, generator.placement: "
        "colocated)",
        fix="generator.placement: separate, or run.max_staleness: 0",
    )


def check_placement(selected: Selected, stage: StageConfig, machine: Machine, findings: Findings) -> None:
    """Generators can be where the config puts them, with weights on the way it wants; this machine has the GPUs."""
    # What world_size() raises, check_plans has reported.
    backend = selected.selections["backend"][0]
    for problem in _guarded(backend, Findings(), "world_size()", lambda: list(placement_problems(stage))) or ():
        _add(selected.nodes["generator"], problem, findings)
    run = stage.run
    if not run.gpus or run.nodes > 1 or ray_address(run.address):
        return
    needed, present = gpus_on_this_machine(stage), machine.gpu_count
    if present is not None and needed > present:
        node = selected.nodes["run"].get("gpus") or selected.nodes["run"]
        generators = f", and {needed - run.gpus} for generators" if needed > run.gpus else ""
        findings.add(
            node.where,
            node.path,
            f"the workers need {needed} GPUs ({run.gpus} for training{generators}), and this machine has {present}",
            fix="lower run.gpus or generator.replicas, use generator.placement: colocated, or set run.address",
            severity="warning",
        )


def check_network(selected: Selected, stage: StageConfig, findings: Findings) -> None:
    """This machine has the interface that workers use among themselves; a Ray client's machine has no workers."""
    interface = stage.run.network_interface
    if interface is None or ray_address(stage.run.address).startswith("ray://"):
        return
    found = interfaces()
    if interface not in found:
        node = selected.nodes["run"].get("network_interface") or selected.nodes["run"]
        message = f"this machine has no network interface {interface!r}"
        findings.add(node.where, node.path, message, fix=f"set one of: {describe(found)}, or remove it")


def check_components(selected: Selected, stage: StageConfig, read: frozenset[str], findings: Findings) -> None:
    """What the components' own ``problems(stage)`` find."""
    for section in (s for s in SECTIONS if s in read):
        for selection in selected.selections.get(section, ()):
            look = getattr(selection.config, "problems", None)
            if not callable(look):
                continue
            found = _guarded(selection, findings, "problems()", lambda look=look: _problems(look(stage)))
            for problem in found or ():
                _add(selection.node, problem, findings)


def check_functions(selected: Selected, read: frozenset[str], registry: Registry, findings: Findings) -> None:
    """The functions that the components' configs name can be imported, where a plugin can try that safely."""
    named = [
        (selection.node, ".".join(map(str, path)), reference)
        for section in (s for s in SECTIONS if s in read)
        for selection in selected.selections.get(section, ())
        if selection.config is not None
        for path, reference in function_references(selection.config)
    ]
    broken: dict[str, tuple[str, str]] = {}
    references = list(dict.fromkeys(reference for _, _, reference in named))
    for outcome in registry.call("validate_functions", references=references) if named else ():
        if outcome.error is not None:
            logger.warning("package %s: its hook validate_functions failed: %s", outcome.package, outcome.error)
        broken |= outcome.result or {}
    for node, path, reference in named:
        if reference in broken:
            _add(node, Problem(path, *broken[reference]), findings)


def check_hooks(selected: Selected, stage: StageConfig, registry: Registry, findings: Findings) -> None:
    """What the ``validate_config`` hooks of all plugins find."""
    root = Node(selected.nodes, selected.tree.root.where, selected.tree.path, selected.tree.root.base)
    for outcome in registry.call("validate_config", config=stage):
        error = outcome.error
        found: list[Problem] = []
        if error is None:
            try:
                found = _problems(outcome.result)
            except Exception as raised:  # noqa: BLE001 - the plugin boundary: a generator runs only now
                error = raised
        if error is not None:
            findings.add(
                root.where,
                root.path,
                f"package {outcome.package}: its hook validate_config failed: {describe_error(error)}",
                fix=f"this is a fault of the package; try: pip install --upgrade {outcome.package}",
            )
        for problem in found:
            _add(root, problem, findings)


def _guarded(selection: Selection, findings: Findings, what: str, call: Any) -> Any:
    """``call()``; a ValueError is the plugin's message to the user, anything else its fault."""
    try:
        return call()
    except ValueError as error:
        findings.add(selection.node.where, selection.node.path, f"{selection.what}: {error}")
    except Exception as error:  # noqa: BLE001 - the plugin boundary
        report_crash(selection, findings, f"{what} failed", error)
    return None


def _problems(found: Iterable[Any] | None) -> list[Problem]:
    problems = list(found or ())
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(f"expected rl_core.config.problems.Problem, got {type(problem).__name__}")
    return problems


def _add(root: Node, problem: Problem, findings: Findings) -> None:
    """Report a plugin's problem at the line of the deepest key of its path that exists below ``root``."""
    parts = [int(part) if part.isdecimal() else part for part in problem.path.split(".") if part]
    if root.path and tuple(parts[: len(root.path)]) == root.path:
        parts = parts[len(root.path) :]
    node, path = root, root.path
    for index, part in enumerate(parts):
        child = node.get(part)
        if child is None:
            path = (*path, *parts[index:])
            break
        node = child
        path = child.path
    findings.add(node.where, path, problem.message, fix=problem.fix, severity=problem.severity)


def _environment_rewards(selected: Selected) -> bool:
    """Whether there is an environment that may reward conversations."""
    return any(
        isinstance(selection.config, EnvironmentConfig) and selection.config.gives_reward
        for selection in selected.selections.get("environment", ())
    )


def _given(selected: Selected, section: str) -> bool:
    node = selected.nodes.get(section)
    return node is not None and not (section in LISTS and node.value == [])


def _section_example(section: str, registry: Registry) -> str:
    names = ", ".join(r.component.name for r in registry.components(KIND_OF[section]))
    example = f"{section}: [{{name: …}}]" if section in LISTS else f"{section}: {{name: …}}"
    return f"{example}; installed: {names}" if names else example
