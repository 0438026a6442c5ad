"""The sections of one stage → the components they select, validated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from rl_core.component import SECTIONS, ComponentChoice
from rl_core.config.compose import LISTS, StageTree
from rl_core.config.document import BrokenText, Node, plain
from rl_core.config.environment import EnvironmentConfig
from rl_core.config.explain import explain
from rl_core.config.findings import Findings
from rl_core.config.interpolate import Interpolator
from rl_core.config.run_section import RunSection
from rl_core.config.sections import (
    AlgorithmConfig,
    BackendConfig,
    ComponentConfig,
    EvaluatorConfig,
    GeneratorConfig,
    ModelConfig,
    RewardConfig,
)
from rl_core.discovery.lookup import ComponentNotFound, published
from rl_core.discovery.references import install_command
from rl_core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registered, Registry

KIND_OF = {
    "algorithm": "algorithm",
    "backend": "backend",
    "generator": "generator",
    "rollout": "rollout",
    "environment": "environment",
    "tokenizer": "tokenizer",
    "data": "data_source",
    "eval_data": "data_source",
    "rewards": "reward",
    "evaluators": "evaluator",
    "loggers": "logger",
}
"""Config section → kind of the components it selects."""

BASE_OF: dict[str, type[ComponentConfig]] = {
    "algorithm": AlgorithmConfig,
    "backend": BackendConfig,
    "generator": GeneratorConfig,
    "environment": EnvironmentConfig,
    "reward": RewardConfig,
    "evaluator": EvaluatorConfig,
}
"""What the config model of a kind derives from; :class:`ComponentConfig` for the others."""

AUTO = "auto"
"""``backend.name`` that leaves the choice to a package with the hook ``plan_run``."""

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass
class Selection:
    """One component section (or list item) of a stage: found in the registry or not, valid or not."""

    section: str
    node: Node
    registered: Registered | None = None
    config: ComponentConfig | None = None

    @property
    def is_auto(self) -> bool:
        """Whether it is a backend that is still to be chosen."""
        name = self.node.get("name") if self.section == "backend" else None
        return name is not None and name.value == AUTO

    @property
    def what(self) -> str:
        """``"reward 'math'"``."""
        name = self.registered.component.name if self.registered else "?"
        return f"{KIND_OF[self.section].replace('_', ' ')} {name!r}"

    def choice(self) -> ComponentChoice | None:
        """The finished choice, None unless found and valid."""
        if self.registered is None or self.config is None:
            return None
        component = self.registered.component
        return ComponentChoice(component.kind, component.name, component, self.registered.package, self.config)


@dataclass
class Selected:
    """Everything a stage's sections say.

    Attributes:
        nodes: interpolated sections by name.
        selections: component sections by name; one for a plain section, any number for a list.
        findings: what is wrong, by section, so that findings in sections nobody reads can be dropped.
    """

    tree: StageTree
    nodes: dict[str, Node] = field(default_factory=dict)
    model: ModelConfig | None = None
    run: RunSection | None = None
    selections: dict[str, list[Selection]] = field(default_factory=dict)
    findings: dict[str, Findings] = field(default_factory=dict)

    @property
    def all_found(self) -> bool:
        """Whether every named component exists, so that what reads what is known."""
        return all(s.registered is not None for group in self.selections.values() for s in group)


def select(tree: StageTree, registry: Registry, interpolator: Interpolator) -> Selected:
    """Validate every section of ``tree``; problems end up in the result's ``findings``."""
    selected = Selected(tree)
    for section in tree.root.value:
        node, findings = interpolator.resolve((section,))
        selected.nodes[section] = node
        selected.findings[section] = found = Findings()
        found.extend(findings)
        if isinstance(node.value, BrokenText):
            selected.selections[section] = [Selection(section, node)] if section in SECTIONS else []
        elif section == "model":
            selected.model = validate(ModelConfig, node, found, what="the section 'model'")
        elif section == "run":
            selected.run = validate(RunSection, node, found, what="the section 'run'")
        elif section in LISTS:
            selected.selections[section] = _select_list(section, node, registry, found)
        else:
            selected.selections[section] = [_select_one(section, node, registry, found)]
    _default_tokenizer(selected, registry)
    _default_rollout(selected, registry)
    return selected


def validate(model: type[ModelT], node: Node, findings: Findings, *, what: str) -> ModelT | None:
    """``node`` as an instance of ``model``; None after reporting what is wrong with it."""
    if not isinstance(node.value, dict):
        findings.add(node.where, node.path, f"must be a section of keys, found {_show(node)}")
        return None
    try:
        return model.model_validate(plain(node))
    except ValidationError as error:
        explain(error, node, model, findings, what=what)
        return None


def _select_list(section: str, node: Node, registry: Registry, findings: Findings) -> list[Selection]:
    if not isinstance(node.value, list):
        fix = f"{section}: [{{name: …}}]"
        findings.add(node.where, node.path, f"must be a list of sections, found {_show(node)}", fix=fix)
        return [Selection(section, node)]
    return [_select_one(section, item, registry, findings) for item in node.value]


def _select_one(section: str, node: Node, registry: Registry, findings: Findings) -> Selection:
    selection = Selection(section, node)
    kind = KIND_OF[section]
    label = kind.replace("_", " ")
    if isinstance(node.value, BrokenText):
        return selection
    if not isinstance(node.value, dict):
        fix = f"write {{name: {node.value}}}" if isinstance(node.value, str) else ""
        findings.add(node.where, node.path, f"must be a section with a 'name', found {_show(node)}", fix=fix)
        return selection
    name = node.get("name")
    if name is None or name.value is None:
        installed = ", ".join(r.component.name for r in registry.components(kind))
        fix = f"installed: {installed}" if installed else f"no {label} is installed"
        findings.add(node.where, node.path, f"has no 'name', so no {label} is selected", fix=fix)
        return selection
    if not isinstance(name.value, str):
        findings.add(name.where, name.path, f"must be text, found {_show(name)}")
        return selection
    if not isinstance(name.value, BrokenText) and not selection.is_auto:
        complete(selection, registry, findings)
    return selection


def complete(selection: Selection, registry: Registry, findings: Findings) -> None:
    """Find the component that the section names, and validate the section with its config model."""
    name = selection.node.value["name"]
    try:
        selection.registered = registry.find(KIND_OF[selection.section], name.value)
    except ComponentNotFound as error:
        findings.add(name.where, name.path, error.message, fix=error.fix)
        return
    _check_imports(selection, name, registry, findings)
    selection.config = _validate_component(selection, registry, findings)


def _check_imports(selection: Selection, name: Node, registry: Registry, findings: Findings) -> None:
    assert selection.registered is not None
    component, package = selection.registered.component, selection.registered.package
    for module in registry.missing_imports(component):
        findings.add(
            name.where,
            name.path,
            f"{selection.what} (package {package}) needs the Python module {module!r}, which is not installed",
            fix=install_command(module, package=package),
        )


def _validate_component(selection: Selection, registry: Registry, findings: Findings) -> ComponentConfig | None:
    assert selection.registered is not None
    component, node = selection.registered.component, selection.node
    base = BASE_OF.get(component.kind, ComponentConfig)
    try:
        model: Any = registry.resolve(component.config)
        if not (isinstance(model, type) and issubclass(model, base)):
            raise TypeError(f"{component.config} does not derive from {base.__module__}.{base.__name__}")
        return validate(model, node, findings, what=selection.what)
    except EnvironmentProblem as error:
        message, _, fix = str(error).partition("\n    ")
        findings.add(node.where, node.path, message, fix=fix)
        return None
    except Exception as error:  # noqa: BLE001 - the plugin boundary: a config model is the plugin's code
        report_crash(selection, findings, "its config cannot be read", error)
        return None


def report_crash(selection: Selection, findings: Findings, doing: str, error: BaseException) -> None:
    """Report that a plugin's own code failed, and whose it is."""
    assert selection.registered is not None
    registered = selection.registered
    findings.add(
        selection.node.where,
        selection.node.path,
        f"{selection.what} (package {registered.package} {registered.version}): {doing}: {describe_error(error)}",
        fix=f"this is a fault of the package; try: pip install --upgrade {registered.package}",
    )


def describe_error(error: BaseException) -> str:
    """``"ZeroDivisionError: division by zero"``, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _default_tokenizer(selected: Selected, registry: Registry) -> None:
    """``{name: hf}`` for a model that comes with a tokenizer; an error for one from scratch."""
    model = selected.nodes.get("model")
    if "tokenizer" in selected.nodes or model is None or not isinstance(model.value, dict):
        return
    findings = selected.findings["tokenizer"] = Findings()
    path = (*selected.tree.path, "tokenizer")
    given = model.get("path")
    if given is None or given.value is None:
        if (init := model.get("init")) is not None and init.value is not None:
            names = ", ".join(r.component.name for r in registry.components("tokenizer"))
            fix = f"tokenizer: {{name: …}}; installed: {names}" if names else "no tokenizer is installed"
            message = "a model from scratch ('model.init') needs the section 'tokenizer'"
            findings.add(init.where, path, message, fix=fix)
        return
    name = replace(given, value="hf", path=(*path, "name"), expression="")
    node = replace(model, value={"name": name}, path=path)
    selected.nodes["tokenizer"] = node
    selected.selections["tokenizer"] = [_select_one("tokenizer", node, registry, findings)]


def _default_rollout(selected: Selected, registry: Registry) -> None:
    """The installed rollout source, for stages that sample or score; an error where there is none, or a choice."""
    asking = next((selected.nodes[s] for s in ("generator", "rewards") if s in selected.nodes), None)
    if "rollout" in selected.nodes or asking is None:
        return
    findings = selected.findings["rollout"] = Findings()
    path = (*selected.tree.path, "rollout")
    offered = registry.components("rollout")
    if len(offered) > 1:
        names = " or ".join(f"{one.package}/{one.component.name}" for one in offered)
        message = f"{len(offered)} packages make and score completions, and one is to be chosen"
        findings.add(asking.where, path, message, fix=f"rollout: {{name: {names}}}")
        return
    if not offered:
        try:
            registry.find("rollout", next(iter(published()["rollout"])))
        except ComponentNotFound as error:
            message = "no package that makes and scores completions is installed"
            findings.add(asking.where, path, message, fix=error.fix)
        return
    name = replace(asking, value=offered[0].component.name, path=(*path, "name"), expression="")
    node = replace(asking, value={"name": name}, path=path)
    selected.selections["rollout"] = [_select_one("rollout", node, registry, findings)]


def _show(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return f"a list of {len(node.value)}"
    if node.value is None:
        return "nothing"
    return repr(node.value)
