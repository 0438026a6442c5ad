"""``rl check``: one YAML file and overrides → a validated config, or everything that is wrong with it.

Nothing heavy is imported and nothing is started. A failure inside a plugin becomes a problem that names its package.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl_secrets.patterns import secret_spans

from rl_core.config.assemble import build_stage, run_document
from rl_core.config.compose import Composition, StageTree, compose
from rl_core.config.document import Node
from rl_core.config.findings import Findings
from rl_core.config.interpolate import Interpolator, SecretsFound, escape
from rl_core.config.paths import SourceText, absolute
from rl_core.config.problems import Problem
from rl_core.config.run_section import RunSection
from rl_core.config.sections import ModelConfig
from rl_core.config.select import Selected, select
from rl_core.config.stage import RunConfig, StageConfig, stage_directory
from rl_core.config.typed_secrets import Writer, remember_typed
from rl_core.contracts.plan import RunPlan
from rl_core.errors import ConfigError
from rl_core.machine import Machine
from rl_core.preflight import crosscheck
from rl_core.preflight.draft import Draft, plan_run

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        config: None if anything is an error.
        problems: in the order of the lines they stand on.
        plans: what plugins planned, in the order of their packages.
    """

    config: RunConfig | None
    problems: tuple[Problem, ...]
    plans: tuple[RunPlan, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that stop a run."""
        return tuple(problem for problem in self.problems if problem.severity == "error")


def check(
    path: str | os.PathLike[str],
    overrides: Sequence[str],
    registry: Registry,
    *,
    import_functions: bool = False,
) -> CheckResult:
    """Resolve and validate a config without starting anything. Never raises on a bad config.

    Args:
        path: the YAML file.
        overrides: ``section.key=value`` texts (see :mod:`rl_core.config.overrides`).
        registry: the installed components.
        import_functions: have plugins import the functions that the config names (``validate_functions``); without it
            none of the user's code is run.
    """
    findings = Findings()
    composition = compose(os.fspath(path), overrides, findings)
    if composition.root is None or (composition.multi_stage and not composition.stages):
        return CheckResult(None, findings.in_order(composition.files))
    remember_typed(composition.root)
    now = time.strftime("%Y%m%d-%H%M%S")
    secrets: SecretsFound = {}
    name, directory = _identity(composition.root, findings, now, secrets)
    stages = _select_stages(composition, name, directory, registry, now, secrets)
    machine = Machine()
    plans = plan_run(Draft(stages, directory, composition.multi_stage, registry))
    reads = [crosscheck.sections_read(stage) for stage in stages]
    known = all(stage.all_found and "algorithm" in stage.nodes for stage in stages)
    for stage, read in zip(stages, reads, strict=True):
        for section, found in stage.findings.items():
            if section in read or not known:
                findings.extend(found)
        crosscheck.check_needs(stage, read, registry, findings)
        crosscheck.check_secrets(stage, findings)
    crosscheck.check_required(stages, composition.root, findings)
    if known:
        findings.extend(crosscheck.check_unread(stages, reads, registry))
    writer = Writer()
    built = _build_stages(stages, reads, registry, machine, findings, writer)
    if import_functions and not findings.failed:
        for stage, read in zip(stages, reads, strict=True):
            crosscheck.check_functions(stage, read, registry, findings)
    if findings.failed:
        return CheckResult(None, findings.in_order(composition.files))
    document = run_document(
        name, directory, [(stage.name, sections) for stage, sections in built], multi_stage=composition.multi_stage
    )
    config = RunConfig(
        name,
        directory,
        tuple(stage for stage, _ in built),
        document,
        composition.multi_stage,
        typed_secrets=writer.typed,
        from_environment=writer.given,
    )
    return CheckResult(config, findings.in_order(composition.files), plans)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str], registry: Registry) -> RunConfig:
    """The validated config; warnings are logged.

    Raises:
        ConfigError: lists every problem.
    """
    result = check(path, overrides, registry)
    if result.config is None:
        count = len(result.errors)
        head = f"{os.fspath(path)}: {count} problem{'s' if count != 1 else ''}"
        raise ConfigError("\n".join([head, *(str(problem) for problem in result.problems)]))
    for problem in result.problems:
        logger.warning("%s", problem)
    return result.config


def _identity(root: Node, findings: Findings, now: str, secrets: SecretsFound) -> tuple[str, str]:
    """The run's name and absolute directory, from the base section ``run``."""
    run = root.get("run")
    given = replace(root, value={key: node for key, node in root.value.items() if key != "stages"})
    values: dict[str, Node] = {}
    for key in ("name", "directory"):
        if run is not None and run.get(key) is not None:
            interpolator = Interpolator(given, defaults=_defaults("run", None, now), folders={}, secrets=secrets)
            values[key], found = interpolator.resolve(("run", key))
            findings.extend(found)
            text = values[key].value
            if values[key].secret or (isinstance(text, str) and secret_spans(text)):
                fix = f"choose another run.{key}"
                findings.add(values[key].where, values[key].path, "holds a secret, and names a folder", fix=fix)
    name_node, directory = values.get("name"), values.get("directory")
    name = name_node.value if name_node is not None and type(name_node.value) is str else "run"
    if directory is not None and type(directory.value) is str and directory.value:
        return name, absolute(SourceText(directory.value, directory.base))
    return name, absolute(os.path.join("runs", name))


def _select_stages(
    composition: Composition, name: str, directory: str, registry: Registry, now: str, secrets: SecretsFound
) -> list[Selected]:
    folders: dict[str, dict[str, str]] = {}
    names = tuple(tree.name for tree in composition.stages) if composition.multi_stage else ()
    stages = []
    for tree in composition.stages:
        interpolator = Interpolator(
            _with_directory(tree, directory).root,
            defaults=_defaults(name, directory, now),
            folders=dict(folders),
            stage_names=names,
            secrets=secrets,
        )
        stages.append(select(tree, registry, interpolator))
        folder = stage_directory(directory, tree.name, multi_stage=composition.multi_stage)
        folders[tree.name] = {"export": os.path.join(folder, "export"), "directory": folder}
    return stages


def _with_directory(tree: StageTree, directory: str) -> StageTree:
    """The stage with the absolute run directory in its section ``run``, unless what stands there is no text."""
    run = tree.root.get("run")
    if run is None or not isinstance(run.value, dict):
        return tree
    given = run.get("directory")
    if given is not None and given.value is not None and not (isinstance(given.value, str) and given.value):
        return tree
    value = Node(escape(directory), (given or run).where, (*run.path, "directory"), run.base)
    run = replace(run, value={**run.value, "directory": value})
    return replace(tree, root=replace(tree.root, value={**tree.root.value, "run": run}))


def _defaults(name: str, directory: str | None, now: str) -> dict[str, Any]:
    """What ``${run.seed}`` and the like stand for where the config does not give the key."""
    known = {
        f"{section}.{key}": info.default
        for section, model in (("run", RunSection), ("model", ModelConfig))
        for key, info in model.model_fields.items()
        if not info.is_required() and isinstance(info.default, str | int | float | bool | None)
    }
    known |= {"run.name": name, "now": now}
    if directory is not None:
        known["run.directory"] = directory
    return known


def _build_stages(
    stages: Sequence[Selected],
    reads: Sequence[frozenset[str]],
    registry: Registry,
    machine: Machine,
    findings: Findings,
    writer: Writer,
) -> list[tuple[StageConfig, dict]]:
    built = []
    for selected, read in zip(stages, reads, strict=True):
        result = build_stage(selected, read, findings, writer)
        if result is None:
            continue
        built.append(result)
        stage = result[0]
        crosscheck.check_plans(selected, stage, findings)
        crosscheck.check_adapter(selected, stage, findings)
        crosscheck.check_staleness(selected, stage, findings)
        crosscheck.check_placement(selected, stage, machine, findings)
        crosscheck.check_network(selected, stage, findings)
        crosscheck.check_components(selected, stage, read, findings)
        crosscheck.check_hooks(selected, stage, registry, findings)
    return built
