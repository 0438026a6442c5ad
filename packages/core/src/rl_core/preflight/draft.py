"""A config whose sections are read and whose parts are not yet put together: what the hook ``plan_run`` is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_core.config.findings import Findings
from rl_core.config.select import KIND_OF, Selected, describe_error
from rl_core.contracts.plan import RunPlan
from rl_core.discovery.lookup import published

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry


@dataclass(frozen=True)
class Draft:
    """The stages of a config, in order.

    Attributes:
        stages: their sections and findings. A backend section may be completed in place.
        directory: absolute path of the run directory.
        multi_stage: whether the config has ``stages:``.
        registry: the installed components.
    """

    stages: Sequence[Selected]
    directory: str
    multi_stage: bool
    registry: Registry


def plan_run(draft: Draft) -> tuple[RunPlan, ...]:
    """What plugins plan; a backend that is left open after that is a finding of its stage, as is a hook that fails."""
    plans = []
    outcomes = draft.registry.call("plan_run", draft=draft)
    if not outcomes:
        _refuse_auto(draft)
    for outcome in outcomes:
        if outcome.error is not None:
            stage = draft.stages[0]
            stage.findings.setdefault("run", Findings()).add(
                stage.tree.root.where,
                stage.tree.path,
                f"package {outcome.package}: its hook plan_run failed: {describe_error(outcome.error)}",
                fix=f"this is a fault of the package; try: pip install --upgrade {outcome.package}",
            )
        elif outcome.result is not None:
            plans.append(outcome.result)
    return tuple(plans)


def _refuse_auto(draft: Draft) -> None:
    package = published()["hook"]["plan_run"]
    for stage in draft.stages:
        for selection in stage.selections.get("backend", ()):
            if selection.is_auto:
                name = selection.node.value["name"]
                installed = ", ".join(r.component.name for r in draft.registry.components(KIND_OF["backend"]))
                stage.findings.setdefault("backend", Findings()).add(
                    name.where,
                    name.path,
                    f"the backend 'auto' is chosen by {package}, which is not installed",
                    fix=f"pip install {package}, or name a backend; installed: {installed or 'none'}",
                )
