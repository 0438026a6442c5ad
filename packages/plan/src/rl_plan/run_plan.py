"""A config's stages → their backends: the choice where the config says ``auto``, memory, and a table to read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_core.config.findings import Findings
from rl_core.config.stage import RunConfig, stage_directory
from rl_core.machine import Machine
from rl_huggingface.model_shape import FoundShape

from rl_plan.backend_report import BackendReport, report_backend
from rl_plan.table import render_plan
from rl_plan.workload import stage_shape

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rl_core.discovery.registry import Registry
    from rl_core.preflight.draft import Draft


@dataclass(frozen=True)
class Plan:
    """What the hook ``plan_run`` returns.

    Attributes:
        backends: stage → what is known about its backend; only stages about which something is.
    """

    backends: Mapping[str, BackendReport]

    def render(self, config: RunConfig, registry: Registry) -> RenderableType:
        """See :class:`rl_core.contracts.plan.RunPlan`."""
        return render_plan(config, registry, self.backends)


def plan(draft: Draft) -> Plan:
    """Choose backends that are ``auto`` and estimate memory, stage by stage: a stage may start from an earlier one."""
    machine = Machine()
    exports: dict[str, FoundShape] = {}
    reports: dict[str, BackendReport] = {}
    for selected in draft.stages:
        name = selected.tree.name
        findings = selected.findings.setdefault("backend", Findings())
        if (report := report_backend(selected, draft.registry, exports, machine, findings)) is not None:
            reports[name] = report
        folder = stage_directory(draft.directory, name, multi_stage=draft.multi_stage)
        exports[os.path.join(folder, "export")] = stage_shape(selected, exports)
    return Plan(reports)
