"""The batch plan: what a config amounts to, for people to read before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rl_core.component import ComponentChoice
from rl_core.config.generators import has_own_gpus, weight_transport
from rl_core.config.stage import RunConfig, StageConfig
from rl_core.discovery.lookup import ComponentNotFound
from rl_secrets.redaction import hide_secrets

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rl_core.contracts.algorithm import BatchPlan
    from rl_core.discovery.registry import Registry

    from rl_plan.backend_report import BackendReport


def render_plan(
    config: RunConfig, registry: Registry | None = None, backends: Mapping[str, BackendReport] | None = None
) -> RenderableType:
    """One small table per stage: components with their packages, sequences per step, optimizer steps, ranks, memory.

    With ``registry`` the packages' versions are shown, with ``backends`` (see
    :class:`rl_core.preflight.check.CheckResult`) memory estimates and the ratings that ``auto`` chose from.
    Nothing is built: the numbers come from ``AlgorithmConfig.plan`` and ``BackendConfig.world_size``.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for stage in config.stages:
        report = (backends or {}).get(stage.name)
        parts.append(_table(config, stage, registry, report))
        if report is not None and (ratings := report.table()) is not None:
            parts.append(ratings)
    return Group(*parts, Text(f"run directory: {config.directory}", overflow="fold"))


def plan_rows(
    config: RunConfig, stage: StageConfig, registry: Registry | None, report: BackendReport | None = None
) -> list[tuple[str, str]]:
    """The lines of a stage's table as ``(label, text)``."""
    plan: BatchPlan = stage.algorithm.config.plan()  # type: ignore[attr-defined]
    backend: Any = stage.backend.config
    gpus = stage.run.nodes * stage.run.gpus
    ranks = backend.world_size(gpus)
    rows = [("model", _model(stage)), *_preset(stage)]
    for label, choices in _choices(stage):
        if choices:
            rows.append((label, ", ".join(_component(choice, registry) for choice in choices)))
    total = stage.run.steps * plan.optimizer_steps
    return [
        *rows,
        ("step", _step(plan)),
        *_conversation(stage),
        ("optimizer steps", f"{plan.optimizer_steps:,} per step × {stage.run.steps:,} steps = {total:,}"),
        ("micro-batch", f"at most {backend.max_tokens_per_microbatch:,} tokens per rank"),
        ("ranks", f"{ranks} ({stage.run.nodes} × {stage.run.gpus} GPUs)" if gpus else f"{ranks} on CPU"),
        *_memory(report),
        *((("generators", describe_generators(stage)),) if stage.generator else ()),
        *_further(stage),
        ("seed", str(stage.run.seed)),
        *(("require", gate) for gate in stage.run.require),
        *((("export", config.export_directory(stage.name)),) if config.multi_stage else ()),
        *(("note", note) for note in plan.notes),
    ]


def describe_generators(stage: StageConfig) -> str:
    """Their number, and on GPUs also their placement and weight transport."""
    assert stage.generator is not None
    config: Any = stage.generator.config
    fewest, most = config.replica_range
    count = str(fewest) if fewest == most else f"{fewest} to {most}, as the cluster has room"
    if not stage.run.gpus and config.weight_transport == "auto":
        return count
    where = "" if not stage.run.gpus else "on the trainers' GPUs; "
    if has_own_gpus(stage):
        where = "each on a GPU of its own; "
    return f"{count}; {where}weights by {weight_transport(stage).replace('_', ' ')}"


def _further(stage: StageConfig) -> list[tuple[str, str]]:
    """What components' configs have to say themselves: an optional ``plan_lines(stage)``, label and text."""
    configs = [choice.config for choice in stage.choices()]
    return [line for config in configs if (say := getattr(config, "plan_lines", None)) for line in say(stage)]


def _conversation(stage: StageConfig) -> list[tuple[str, str]]:
    if stage.environment is None:
        return []
    turns, tokens = stage.environment.config.max_turns, stage.max_tokens_per_turn
    whole = stage.model.max_length
    return [("conversation", f"at most {turns:,} × {tokens:,} model tokens; with prompt and environment {whole:,}")]


def _memory(report: BackendReport | None) -> list[tuple[str, str]]:
    line = report.memory_line() if report is not None else None
    if report is None or line is None:
        return []
    return [("memory", line), *(("", note) for note in report.job.notes)]


def _preset(stage: StageConfig) -> list[tuple[str, str]]:
    """The preset and what it filled in; a field the user gave instead says what the preset has."""
    config: Any = stage.algorithm.config
    if config.preset is None:
        return []
    fields = _flat(config.presets[config.preset])
    final = _flat(config.model_dump(mode="json"))
    parts = [f"{k} {final[k]}" + ("" if final[k] == v else f" (preset: {v})") for k, v in fields.items()]
    return [("preset", f"{config.preset}: {', '.join(parts)}")]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _table(
    config: RunConfig, stage: StageConfig, registry: Registry | None, report: BackendReport | None
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    title = f"stage {stage.name}" if config.multi_stage else config.name
    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in plan_rows(config, stage, registry, report):
        table.add_row(label, Text(hide_secrets(text)))  # before it is wrapped
    return table


def _step(plan: BatchPlan) -> str:
    if plan.input == "examples":
        return f"{plan.rows_per_step:,} examples"
    sequences = plan.rows_per_step * plan.group_size
    return f"{plan.rows_per_step:,} prompts × {plan.group_size:,} completions = {sequences:,} sequences"


def _model(stage: StageConfig) -> str:
    if stage.model.init is None:
        return f"{stage.resolved['model']['path']} (at most {stage.model.max_length:,} tokens)"
    init = stage.model.init
    shape = f"{init.architecture}, {init.layers} layers of width {init.hidden_size:,}"
    return f"from scratch: {shape} (at most {stage.model.max_length:,} tokens)"


def _choices(stage: StageConfig) -> list[tuple[str, tuple[ComponentChoice, ...]]]:
    single = {
        "algorithm": stage.algorithm,
        "backend": stage.backend,
        "generator": stage.generator,
        "environment": stage.environment,
        "tokenizer": stage.tokenizer,
        "data": stage.data,
        "eval_data": stage.eval_data,
    }
    groups = [(label, (choice,) if choice else ()) for label, choice in single.items()]
    return [*groups, ("rewards", stage.rewards), ("evaluators", stage.evaluators), ("loggers", stage.loggers)]


def _component(choice: ComponentChoice, registry: Registry | None = None) -> str:
    if registry is None:
        return f"{choice.name} ({choice.package})"
    try:
        version = registry.find(choice.kind, f"{choice.package}/{choice.name}").version
    except ComponentNotFound:
        return f"{choice.name} ({choice.package})"
    return f"{choice.name} ({choice.package} {version})"
