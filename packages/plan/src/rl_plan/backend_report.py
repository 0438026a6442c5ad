"""What ``rl check`` tells about a stage's backend: its memory per rank, and the ratings ``auto`` chose from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_core.config.findings import Findings
from rl_core.config.select import Selected, Selection, describe_error
from rl_core.contracts.rating import BackendJob, MemoryEstimate
from rl_core.machine import Machine

from rl_plan.auto_backend import RatedBackend, choose_backend
from rl_plan.memory import GROUPS, estimator_name, estimator_of, memory_limit, size
from rl_plan.workload import Exports, backend_job

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rl_core.discovery.registry import Registry


@dataclass(frozen=True)
class BackendReport:
    """A stage's backend.

    Attributes:
        job: what it was asked about.
        memory: its estimate; None where it has none, or where the model's size is unknown.
        ratings: of all backends, best first; empty unless the config says ``auto``.
        estimates: whether the backend estimates memory at all.
    """

    job: BackendJob
    memory: MemoryEstimate | None = None
    ratings: tuple[RatedBackend, ...] = ()
    estimates: bool = True

    def memory_line(self) -> str | None:
        """``"1.9 GiB per rank: …"``, or why there is no number; None for a backend that never has one."""
        if not self.estimates:
            return None
        if self.memory is None:
            return f"unknown: {self.job.unknown}" if self.job.unknown else "unknown"
        parts = ", ".join(f"{group} {size(getattr(self.memory, group))}" for group in GROUPS)
        limit = memory_limit(self.job)
        room = f" of {size(limit[0])} {limit[1]}" if limit else ""
        return f"{size(self.memory.peak)} per rank at the peak{room}; {parts}"

    def table(self) -> RenderableType | None:
        """The ratings as a table, None unless the backend was chosen."""
        if not self.ratings:
            return None
        from rich.table import Table
        from rich.text import Text

        table = Table(title="backend auto", title_justify="left", box=None, pad_edge=False)
        for header, options in (("backend", {"no_wrap": True}), ("score", {"justify": "right"}), ("memory", {})):
            table.add_column(header, **options)
        table.add_column("reasons", overflow="fold")
        for one in self.ratings:
            memory = size(one.rating.memory.peak) if one.rating.memory else "unknown"
            table.add_row(one.label, str(one.rating.score), memory, Text("; ".join(one.rating.reasons)))
        return table


def report_backend(
    selected: Selected, registry: Registry, exports: Exports, machine: Machine, findings: Findings
) -> BackendReport | None:
    """Choose the backend where the config says ``auto``, and estimate its memory.

    Returns:
        None where another section is wrong or missing (that is reported elsewhere), and for a named backend that
        makes no estimates.
    """
    group = selected.selections.get("backend")
    if not group or not (group[0].is_auto or estimator_of(group[0], registry)):
        return None
    job = backend_job(selected, registry, exports, machine)
    if job is None:
        return None
    selection = group[0]
    ratings = choose_backend(selected, job, registry, findings) if selection.is_auto else ()
    config: Any = selection.config
    if config is None:
        return BackendReport(job, ratings=ratings)
    estimator = estimator_of(selection, registry)
    if estimator is None:
        return BackendReport(job, ratings=ratings, estimates=False)
    report = BackendReport(job, _estimate(selection, estimator, job, findings), ratings)
    _check_room(selected, config, report, findings)
    return report


def _estimate(
    selection: Selection,
    estimator: Callable[[BackendJob], MemoryEstimate | None],
    job: BackendJob,
    findings: Findings,
) -> MemoryEstimate | None:
    if job.unknown:
        return None
    try:
        return estimator(job)
    except Exception as error:  # noqa: BLE001 - the plugin boundary; a run does not depend on an estimate
        assert selection.registered is not None
        findings.add(
            selection.node.where,
            selection.node.path,
            f"{selection.what} (package {selection.registered.package} {selection.registered.version}): "
            f"{estimator_name(selection)} failed, so memory is not estimated: {describe_error(error)}",
            severity="warning",
        )
        return None


def _check_room(selected: Selected, config: Any, report: BackendReport, findings: Findings) -> None:
    """A warning where the estimate is more than there is."""
    limit = memory_limit(report.job)
    if report.memory is None or limit is None:
        return
    try:
        ranks = config.world_size(report.job.total_gpus)
    except Exception:  # noqa: BLE001 - check_plans reports it
        return
    memory, (room, where) = report.memory, limit
    each = 1 if report.job.gpus else -(-ranks // report.job.nodes)
    if memory.peak * each <= room:
        return
    many = f" × {each} ranks" if each > 1 else ""
    tokens = f"lower backend.max_tokens_per_microbatch (now {config.max_tokens_per_microbatch:,})"
    less = "use more GPUs (run.gpus, run.nodes), a smaller model, or model.adapter"
    if report.job.adapter is not None or not report.job.gpus:
        less = "use more GPUs (run.gpus, run.nodes) or a smaller model"
    advice = [memory.advice] if memory.advice else []
    fix = ", or ".join([*([tokens] if memory.lasting * each < room else []), *advice]) or less
    section = selected.nodes["backend"]
    at = section.get("max_tokens_per_microbatch") or section
    findings.add(
        at.where,
        at.path,
        f"training needs an estimated {size(memory.peak)}{many}, there are {size(room)} {where}",
        fix=fix,
        severity="warning",
    )
