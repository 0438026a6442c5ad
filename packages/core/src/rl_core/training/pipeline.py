"""A run from its first stage to its last, in a locked run directory."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_secrets.redaction import masked_error, redact

from rl_core.cluster.failures import ray_lost
from rl_core.cluster.pool import WorkerPool
from rl_core.cluster.session import RaySession, ray_session
from rl_core.config.gates import gate_failure
from rl_core.contracts.logger import RunInfo
from rl_core.errors import Interrupted, RLError, WorkerDied
from rl_core.io.files import read_object, write_atomic
from rl_core.training.assembly import assemble
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.cluster_needs import cluster_interface, deadlines_of, ray_needs
from rl_core.training.directory import RunDirectory
from rl_core.training.driver import DriverParts, driver_parts
from rl_core.training.export import export_model
from rl_core.training.logger_group import Activity, LoggerGroup, build_loggers
from rl_core.training.observers import Observers
from rl_core.training.phases import StepTimes
from rl_core.training.profiling import StageProfile, profile_of
from rl_core.training.progress import working
from rl_core.training.recovery import Recovery
from rl_core.training.resume import announce, newest_checkpoint, starting_point
from rl_core.training.signals import StopRequest, listen, stop_on_interrupt
from rl_core.training.stage import train_stage
from rl_core.training.state import read_state

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig, StageConfig
    from rl_core.discovery.registry import Registry

logger = logging.getLogger("rl")

FINISHED = "finished.json"
"""Written last in a stage's folder, with the number of steps it has trained."""

_STATUS_EVERY_S = 0.5

_RAY_SAYS_S = 1.0
"""Within this time after a worker's death it is known whether Ray itself is gone."""


@dataclass
class Outcome:
    """What a run did, for the closing summary."""

    directory: Path
    export: Path
    samples: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    profiles: list[StageProfile] = field(default_factory=list)


class Pipeline:
    """Runs the stages of a config that are not finished yet."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        registry: Registry,
        *,
        allowed: Sequence[str] = (),
        profile: bool = False,
    ) -> None:
        """``allowed``: what may have changed since the run was started (``rl resume --allow``)."""
        self._profile = profile
        self._allowed = tuple(allowed)
        self._config = config
        self._directory = directory
        self._registry = registry
        self._outcome = Outcome(directory.path, Path(config.export_directory(config.stages[-1].name)))
        self._warned: set[str] = set()
        self._recovery = Recovery(config.stages[0].run.max_failures)

    def run(self) -> Outcome:
        """Train every unfinished stage.

        Raises:
            RLError: nothing is left to train, a stage failed, or the user interrupted.
        """
        unfinished = [s for s in self._config.stages if not self._finished(s)]
        if not unfinished and not self._lacks_only_its_end():
            raise RLError(
                f"nothing to do: every stage of {self._directory.path} has finished\n"
                "    train on with: rl resume RUN_DIR run.steps=MORE (see also rl eval, rl export)"
            )
        self._call(
            "on_run_start", fatal=True, config=redact(self._config.document), directory=str(self._directory.path)
        )
        status = "failed"
        try:
            if unfinished:
                self._train(unfinished)
            else:
                logger.warning("every stage has finished already; the run ended before it wrote so")
            status = "finished"
        except BaseException as error:
            status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            self._directory.status(status=status, error=str(error))
            self._call("on_run_error", error=masked_error(error))
            raise
        finally:
            self._call("on_run_end", status=status)
        self._directory.status(status="finished", error=None)
        return self._outcome

    def _train(self, stages: list[StageConfig]) -> None:
        limits = [stage.run.save_before_timeout for stage in self._config.stages]
        try:
            with stop_on_interrupt(min((limit for limit in limits if limit is not None), default=None)) as stop:
                self._run_stages(stages, stop)
        except Interrupted:
            raise
        except Exception:
            self._directory.require_intact()  # what failed may have failed because the directory is gone
            raise
        self._directory.require_intact()

    def _run_stages(self, stages: list[StageConfig], stop: StopRequest) -> None:
        run = self._config.stages[0].run
        self._directory.status(status="running", stage=stages[0].name, step=0, error=None)
        with contextlib.ExitStack() as stack:
            needs = ray_needs(self._config)
            ray = stack.enter_context(ray_session(needs, self._directory.logs, on_loss=self._ray_is_lost))
            # While Ray starts: what is wrong with data and tokenizer shows before it is waited for.
            first = driver_parts(stages[0], self._registry)
            start = self._starting_point(stages[0], first)
            pool = WorkerPool(
                manifest=self._registry.manifest(),
                logs=self._directory.logs,
                deadlines=deadlines_of(run),
                stopping=lambda: bool(stop),
                network_interface=cluster_interface(run),
                loss=ray.loss,
            )
            loggers = build_loggers(self._config, self._registry)
            stack.push(lambda _kind, error, _trace: loggers.close(error))
            with working("starting Ray"):
                ray.join()
            listen(stop)
            stack.callback(pool.close)
            for index, stage in enumerate(stages):
                parts = first if index == 0 else driver_parts(stage, self._registry)
                started = time.perf_counter()
                if index:
                    start = self._starting_point(stage, parts)
                self._run_recovering(stage, parts, pool, loggers, stop, start, ray)
                self._outcome.seconds[stage.name] = time.perf_counter() - started
                pool.unload()

    def _starting_point(self, stage: StageConfig, driver: DriverParts) -> tuple[Path | None, int]:
        """The checkpoint to continue from and its step; what it cannot continue from is found before Ray starts."""
        latest = self._newest(stage)
        state = starting_point(
            stage,
            latest,
            fingerprint=driver.fingerprint,
            directory=self._directory.path,
            allowed=self._allowed,
        )
        if latest is None or state is None:
            return None, 0
        announce(stage, latest, state, logged=self._directory.last_step(stage.name))
        return latest, state.step

    def _run_recovering(
        self,
        stage: StageConfig,
        driver: DriverParts,
        pool: WorkerPool,
        loggers: LoggerGroup,
        stop: StopRequest,
        start: tuple[Path | None, int],
        ray: RaySession,
    ) -> None:
        """Run a stage; when workers or Ray fail, end what is left and run it again from its newest checkpoint."""
        while True:
            try:
                return self._run_stage(stage, driver, pool, loggers, stop, start)
            except BaseException as error:
                death = _death(error, ray)
                if death is None:
                    raise
                pool.close()  # the other ranks may hang in an exchange with the dead one
                self._directory.require_intact()
                latest = self._newest(stage)
                saved = read_state(latest).step if latest else None
                self._recovery.absorb(death, stage, saved=saved)
                self._directory.status(failures=self._recovery.failures)
                if death.cause == "ray":
                    with working("starting Ray again"):
                        ray.restart()
                    listen(stop)
                driver = driver_parts(stage, self._registry, loaded=driver)
                start = latest, saved or 0

    def _newest(self, stage: StageConfig) -> Path | None:
        return newest_checkpoint(self._checkpoints(stage), stage, directory=self._directory.path, allowed=self._allowed)

    def _ray_is_lost(self, reason: str) -> None:
        """Called from another thread: Ray may end this process before it can say so itself."""
        self._directory.status(status="failed", error=f"{reason}\n    continue with: rl resume {self._directory.path}")

    def _checkpoints(self, stage: StageConfig) -> CheckpointStore:
        folder = Path(self._config.stage_directory(stage.name))
        return CheckpointStore.of(folder, stage.run, stage=stage.name, guard=self._directory.require_intact)

    def _run_stage(
        self,
        stage: StageConfig,
        driver: DriverParts,
        pool: WorkerPool,
        loggers: LoggerGroup,
        stop: StopRequest,
        start: tuple[Path | None, int],
    ) -> None:
        folder = Path(self._config.stage_directory(stage.name))
        latest, done = start
        self._directory.trim(stage.name, done if latest else -1)
        drawn = read_state(latest).position if latest else 0
        profile = profile_of(stage, pool, folder, self._registry) if self._profile else None
        watching = () if profile is None else profile.observers
        observers = Observers(*watching, self._recovery, StepTimes(), Activity(loggers))
        loaded = assemble(
            stage, driver=driver, pool=pool, directory=folder, done=done, position=drawn, observers=observers
        )
        loggers.start(self._info(stage, done + 1))
        observers.add(*(one for one in self._call("observe_stage", stage=stage, loggers=loggers) if one is not None))
        gc.freeze()  # what is there stays for the stage: looking through it takes as long as a small model's step
        try:
            samples = train_stage(
                stage,
                driver,
                loaded,
                store=self._checkpoints(stage),
                loggers=loggers,
                observers=observers,
                step_end=self._step_end(stage),
                saved=self._checkpointed(stage),
                stop=stop,
                directory=self._directory.path,
                resume_from=latest,
                profile=profile,
            )
        finally:
            gc.unfreeze()
            observers.close()
            driver.close()
        self._outcome.samples = samples or self._outcome.samples
        if profile is not None:
            self._outcome.profiles.append(profile)
        self._check_gates(stage)
        self._directory.require_intact()
        if stage.run.steps:
            with working(f"{stage.name}: exporting the model"):
                export_model(loaded.policy, driver.tokenizer, folder / "export")
        self._directory.require_intact()
        write_atomic(folder / FINISHED, json.dumps({"steps": stage.run.steps}) + "\n")

    def _check_gates(self, stage: StageConfig) -> None:
        metrics = self._directory.last_metrics(stage.name)
        failures = [f for f in (gate_failure(gate, metrics) for gate in stage.run.require) if f is not None]
        if failures:
            raise RLError(
                f"stage {stage.name!r} does not meet what it requires, so the run stops here\n    "
                + "\n    ".join(failures)
            )

    def _finished(self, stage: StageConfig) -> bool:
        steps = self._finished_steps(stage)
        return steps is not None and steps >= stage.run.steps

    def _finished_steps(self, stage: StageConfig) -> int | None:
        """The steps that a stage had trained when it finished, None where it has not."""
        file = Path(self._config.stage_directory(stage.name)) / FINISHED
        try:
            steps = read_object(file).get("steps")
            if type(steps) is not int:
                raise ValueError(f"steps must be a whole number, not {steps!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged (%s), so the stage is taken for one that has not finished", file, error)
            return None
        return steps

    def _lacks_only_its_end(self) -> bool:
        """Whether the last stage finished as the config has it, and the run was killed before it wrote that it had."""
        last = self._config.stages[-1]
        exported = last.run.steps == 0 or Path(self._config.export_directory(last.name)).is_dir()
        return exported and self._finished_steps(last) == last.run.steps and not self._directory.ended_well()

    def _info(self, stage: StageConfig, first_step: int) -> RunInfo:
        return RunInfo(
            run=self._config.name,
            directory=str(self._directory.path),
            stage=stage.name,
            stages=tuple(s.name for s in self._config.stages),
            total_steps=stage.run.steps,
            first_step=first_step,
            config=stage.resolved,
        )

    def _step_end(self, stage: StageConfig) -> Any:
        last_written = 0.0

        def step_end(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal last_written
            self._outcome.metrics.setdefault(stage.name, {}).update(metrics)
            now = time.monotonic()
            if now - last_written > _STATUS_EVERY_S or step == stage.run.steps:
                self._directory.require_intact()
                self._directory.status(status="running", stage=stage.name, step=step)
                last_written = now
            self._call("on_step_end", stage=stage.name, step=step, metrics=metrics)

        return step_end

    def _checkpointed(self, stage: StageConfig) -> Any:
        return lambda step, path: self._call("on_checkpoint", stage=stage.name, step=step, path=path)

    def _call(self, hook: str, *, fatal: bool = False, **arguments: Any) -> list[Any]:
        """Call a hook of every plugin; a failure stops the run if ``fatal``, else it is logged once per plugin."""
        results = []
        for outcome in self._registry.call(hook, **arguments):
            if outcome.error is None:
                results.append(outcome.result)
                continue
            message = f"plugin {outcome.package}: {hook} raised {type(outcome.error).__name__}: {outcome.error}"
            if fatal:
                raise RLError(
                    f"{message}\n    fix or disable it: RL_DISABLE_PLUGINS={outcome.package}"
                ) from outcome.error
            if message not in self._warned:
                self._warned.add(message)
                logger.warning("%s", message)
        return results


def _death(error: BaseException, ray: RaySession) -> WorkerDied | None:
    """The failure of a worker, or of Ray itself, that an error stands for; None where it is another one."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return None
    if isinstance(error, WorkerDied) or _is_from_ray(error):
        ray.loss.wait(_RAY_SAYS_S)  # workers die with it, and may be noticed first
    if ray.loss.reason:
        return ray_lost(ray.loss.reason)
    return error if isinstance(error, WorkerDied) else None


def _is_from_ray(error: BaseException | None) -> bool:
    while error is not None and not type(error).__module__.startswith("ray."):
        error = error.__cause__
    return error is not None
