"""The hooks a plugin may implement (one pluggy project, ``rl_core``).

A plugin package points the entry-point group ``rl_core.plugins`` at a *light* module that
implements any of these with ``@hookimpl``. Registration hooks return :class:`Component`
descriptions, which hold string references, so nothing heavy is imported to list plugins.

Hook arguments are matched by name: an implementation takes only the ones it needs. New
arguments may be added in a minor version; existing ones are never renamed within a major one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from rl_core.component import Component
    from rl_core.contracts.cluster import NamedCluster
    from rl_core.contracts.plan import RunPlan
    from rl_core.contracts.rating import BackendJob, BackendRating

PROJECT = "rl_core"
ENTRY_POINT_GROUP = "rl_core.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_algorithms() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer algorithms. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_backends() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer training backends. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_generators() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer generators. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_rollouts() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer rollout sources. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_tokenizers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer tokenizers. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_data_sources() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer data sources. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_rewards() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer rewards. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_environments() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer environments. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_evaluators() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer evaluators. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_loggers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offer loggers. Called at discovery in every process; an exception marks the plugin broken."""


@hookspec
def register_commands(app: Any) -> None:
    """Add sub-commands to the ``rl`` command line; ``app`` is the ``typer.Typer`` application.

    Called in the ``rl`` process only, before the command line is parsed. A failure is reported
    as a warning on stderr and the other commands keep working.
    """


@hookspec
def validate_config(config: Any) -> Iterable[Any]:  # type: ignore[empty-body]
    """Add findings to ``rl check`` and to the check that every run makes before it starts.

    Called once per stage, in the ``rl`` process, with the validated
    :class:`rl_core.config.stage.StageConfig`. Returns
    :class:`rl_core.config.problems.Problem` objects; an exception is itself reported as a problem
    that names the plugin.
    """


@hookspec
def validate_functions(references: Sequence[str]) -> Mapping[str, tuple[str, str]]:  # type: ignore[empty-body]
    """Import the functions that a config names, for ``rl check``; no user code may run in the ``rl`` process itself.

    Called in the ``rl`` process, once per stage, and only where nothing else is wrong with the config. ``references``
    are ``module:function`` or ``/folder/file.py:function``. Returns reference → what is wrong and how to fix it; those
    that can be imported are absent.
    """


@hookspec
def plan_run(draft: Any) -> RunPlan | None:
    """Look at a config before its parts are put together: choose what it leaves open, add findings, show a plan.

    Called once per check, in the ``rl`` process. ``draft`` is a :class:`rl_core.preflight.draft.Draft`: the sections of
    every stage, which may be completed in place (a backend whose name is ``auto``), and its findings. What is returned
    is shown by ``rl check`` where the config has no errors. An exception is reported as a problem that names the
    plugin.
    """


@hookspec
def rate_backends(job: BackendJob) -> Iterable[BackendRating]:  # type: ignore[empty-body]
    """Say how well the package's backends would run a job; ``backend: {name: auto}`` takes the best.

    Called in the ``rl`` process by rl-plan, before anything starts, once for each stage whose backend is ``auto``. It
    may import pydantic models but neither torch nor transformers, and must not touch the network or a GPU: what it
    may use is in ``job``. A failure, or a rating of a backend that the package does not register, is reported as a
    warning that names the package, and its backends are left out of the choice.
    """


@hookspec
def find_cluster(name: str) -> NamedCluster | None:
    """Say where the Ray cluster is that ``run.address`` (or ``RAY_ADDRESS``) calls ``name``; None for other names.

    Called in the ``rl`` process, for an address that is a word such as ``cluster``, when a run is about to join it.
    An :class:`rl_core.errors.EnvironmentProblem` is the message to the user where the cluster does not run.
    """


@hookspec
def profile_stage(stage: Any, pool: Any, directory: Path) -> Any:
    """Measure a stage of ``rl run --profile``; returns a :class:`rl_core.training.profiling.StageProfile`.

    Called in the driver before the stage's first step, and again after a recovery. What is written goes into a new
    folder in ``directory``, the stage's. A failure stops the run. Of several plugins the first is taken.
    """


@hookspec
def observe_stage(stage: Any, loggers: Any) -> Any:
    """Watch the steps of a stage; returns a :class:`rl_core.training.observers.StepObserver`, or None.

    Called in the driver before the stage's first step, and again after a recovery, with the
    :class:`rl_core.config.stage.StageConfig` and the run's loggers, a
    :class:`rl_core.training.logger_group.LoggerGroup`, whose ``log_machines`` may be called from any thread. A failure
    is logged; the run continues without that observer.
    """


@hookspec
def on_run_start(config: Any, directory: str) -> None:
    """Called in the driver after the run directory exists and before workers start. A failure stops the run."""


@hookspec
def on_step_end(stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Called in the driver after each step, when its metrics are complete. A failure is logged once per plugin."""


@hookspec
def on_checkpoint(stage: str, step: int, path: str) -> None:
    """Called in the driver after a checkpoint became complete. A failure is logged; the run continues."""


@hookspec
def on_run_error(error: BaseException) -> None:
    """Called in the driver when the run is about to stop with ``error``. A failure here is only logged."""


@hookspec
def on_run_end(status: str) -> None:
    """Called in the driver last, with ``finished``, ``interrupted`` or ``failed``. A failure is only logged."""


@hookspec
def on_worker_start(role: str, rank: int) -> None:
    """Called in every Ray actor before its component is built; ``role`` is ``"train"`` or ``"generate"``.

    The component's modules may have been imported before. It may run more than once in one process
    (workers are reused between stages) and must be idempotent. A failure stops the worker and so the run.
    """
