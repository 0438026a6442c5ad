"""The training loop. There is one, for every algorithm."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.errors import RLError, StorageError
from rl_core.secrets.redaction import mask_names
from rl_core.training.checkpoint import CheckpointStore, training_goes_on
from rl_core.training.evaluation import due, evaluate
from rl_core.training.loggers import Loggers
from rl_core.training.phases import SAMPLING, Phases, sampling_parts
from rl_core.training.signals import StopRequest
from rl_core.training.state import RunState, read_state
from rl_core.training.updates import Update, Updates

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice
    from rl_core.contracts.evaluator import Evaluator
    from rl_core.rollout.feed import Feed
    from rl_core.training.assembly import Assembly
    from rl_core.training.profile import Profile

logger = logging.getLogger("rl")


@dataclass(frozen=True)
class LoopHooks:
    """What the loop tells the outside: ``step_end(step, metrics)`` and ``checkpoint(step, path)``."""

    step_end: Callable[[int, Mapping[str, float]], None]
    checkpoint: Callable[[int, str], None]


@dataclass
class Loop:
    """Runs one stage from ``resume_from`` (a checkpoint folder) or from its first step.

    Attributes:
        failures: those that the run has recovered from.
        failed_at: when the failure was noticed that this loop recovers from (monotonic seconds), if it does.
        phases: where the time of each step goes.
        profile: for ``--profile``; it reads ``phases``.
    """

    parts: Assembly
    checkpoints: CheckpointStore
    loggers: Loggers
    hooks: LoopHooks
    stop: StopRequest
    directory: Path
    resume_from: Path | None = None
    failures: int = 0
    failed_at: float | None = None
    phases: Phases = field(default_factory=Phases)
    profile: Profile | None = None
    _unfinished: int | None = None  # the step whose checkpoint is being written in the background
    _ahead: Update | RLError | None = None  # the next step, asked for already, or why it can't be

    def __post_init__(self) -> None:
        self._updates = Updates(self.parts, self.directory, phases=self.phases, profiled=self.profile is not None)

    def run(self) -> list[dict[str, Any]]:
        """Train to the last step; returns the samples of the final evaluation.

        Raises:
            Interrupted: the user, a signal or the time limit asked to stop; a checkpoint was saved.
            RLError: the batch of a non-finite loss was saved, or a part failed.
        """
        parts = self.parts
        done = self._restore()
        if self.stop:
            raise self.stop.error(
                f"stopped before step {done.step + 1} of stage {parts.stage.name!r}\n"
                f"    continue with: rl resume {self.directory}"
            )
        parts.driver.algorithm.start(str(self.checkpoints.folder.parent))
        with closing(parts.feed(done.position)) as feed, self.profile or contextlib.nullcontext():
            return self._steps(feed, done)

    def _steps(self, feed: Feed, done: RunState) -> list[dict[str, Any]]:
        if feed.samples or done.step == 0:
            self.parts.publish_weights(done.weights_version)
        samples = self._evaluate_before(done.step)
        self.stop.steps_begin()
        for step in range(done.step + 1, self.parts.stage.run.steps + 1):
            if self.profile is not None:
                self.profile.before(step)
            with self.phases.step():
                samples = self._step(step, feed, version=done.weights_version + step - done.step) or samples
        return samples

    def _step(self, step: int, feed: Feed, *, version: int) -> list[dict[str, Any]]:
        """One step, which makes the weights ``version``; returns the samples of its evaluation."""
        phase, started, recovery = self.phases.phase, time.perf_counter(), self._recovery_metrics()
        update = self._begin(step, feed)
        self._begin_ahead(step, feed)
        with self.loggers.doing("training"):
            metrics = {**update.drawn, **recovery, **self._updates.finish(update)}
        trained = time.perf_counter()
        if feed.samples or self._due(step):
            with phase("weights"):
                self.parts.publish_weights(version)
            metrics["time/weights_s"] = time.perf_counter() - trained
        with phase("evaluation"):
            evaluated, samples = self._evaluate(step)
        metrics = mask_names(metrics | evaluated)
        with phase("checkpoint"):
            self._commit_if_written()
        metrics["time/step_s"] = time.perf_counter() - started
        with phase("logging"):
            self.loggers.log(step, metrics)
            self.loggers.log_samples(step, [*update.samples, *samples])
            self.hooks.step_end(step, metrics)
        with phase("checkpoint"):
            self._save_if_due(step, feed, version, metrics)
        return samples

    def _begin(self, step: int, feed: Feed) -> Update:
        """The update of a step: that which was asked for ahead, or a new one."""
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, RLError):
            raise ahead
        if ahead is not None:
            return ahead
        if feed.samples:
            with self.phases.phase("turns"):
                self.parts.turns.generating()
        with self.loggers.doing("sampling"), self.phases.phase(SAMPLING):
            draw = feed.next(step)
        self.phases.move(SAMPLING, sampling_parts(draw.metrics))
        drawn = draw.metrics | (self.parts.router.metrics() if feed.samples and self.parts.router is not None else {})
        with self.phases.phase("turns"):
            self.parts.turns.training()
        return self._updates.begin(step, draw.batch, drawn, tuple(draw.samples))

    def _begin_ahead(self, step: int, feed: Feed) -> None:
        """Ask for the step after ``step`` where nothing comes between them that needs the weights of ``step``.

        The workers go from one to the other while metrics travel, are logged, and a batch is drawn.
        """
        if feed.samples or not self._updates.can_begin or self.stop or self._is_last(step):
            return
        # A call to a worker waits for what was asked for before: no question about a checkpoint meanwhile.
        if self._due(step) or self._is_saved(step) or self._unfinished is not None:
            return
        try:
            self._ahead = self._begin(step + 1, feed)
        except RLError as error:
            self._ahead = error  # of the next step: this one's metrics are logged first

    def _recovery_metrics(self) -> dict[str, float]:
        """Failures so far, and at the first step after one what it took to get there."""
        metrics = {"run/failures": float(self.failures)} if self.failures else {}
        if self.failed_at is not None:
            metrics["time/recovery_s"] = time.monotonic() - self.failed_at
            self.failed_at = None
        return metrics

    def _restore(self) -> RunState:
        stage = self.parts.stage.name
        if self.resume_from is None:
            return RunState(stage=stage, step=0, position=0, weights_version=0)
        state = read_state(self.resume_from)
        for model in self.parts.models.values():
            if model.role.trainable:
                model.restore(str(self.resume_from / model.role.name))
        self._load_algorithm(state)
        logger.info("%s: continuing after step %d", stage, state.step)
        return state

    def _load_algorithm(self, state: RunState) -> None:
        try:
            self.parts.driver.algorithm.load_state(state.algorithm)
        except RLError:
            raise
        except Exception as error:
            name = self.parts.stage.algorithm.name
            raise RLError(
                f"algorithm {name!r} cannot continue from its state in {self.resume_from}: "
                f"{type(error).__name__}: {error}\n"
                "    install the version that wrote it (plugins.json), or start a new run"
            ) from error

    def _evaluate_before(self, done: int) -> list[dict[str, Any]]:
        """The evaluation before training, as step 0; a resumed run has it already."""
        if done:
            return []
        metrics, samples = self._evaluate(0)
        if metrics:
            self.loggers.log(0, metrics)
            self.loggers.log_samples(0, samples)
        return samples

    def _evaluate(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        chosen = self._due(step)
        if not chosen:
            return {}, []
        started = time.perf_counter()
        self.parts.turns.both()  # evaluators may ask the model as well as the generator
        with self.loggers.doing("evaluating"):
            metrics, samples = evaluate(self.parts, chosen, step)
        return mask_names(metrics | {"time/eval_s": time.perf_counter() - started}), samples

    def _due(self, step: int) -> list[tuple[ComponentChoice, Evaluator]]:
        last = self.parts.stage.run.steps
        return [pair for pair in self.parts.driver.evaluators if due(pair[0], step, last)]

    def _save_if_due(self, step: int, feed: Feed, version: int, metrics: Mapping[str, float]) -> None:
        last = self._is_last(step)
        self.stop.step_done()
        # Once: a signal during the save stops after the next step, and so does one that comes when that has begun.
        stopping = bool(self.stop) and self._ahead is None
        if stopping or self._is_saved(step):
            state = RunState(
                stage=self.parts.stage.name,
                step=step,
                position=feed.cursor.position,
                weights_version=version,
                fingerprint=self.parts.driver.fingerprint,
                algorithm=dict(self.parts.driver.algorithm.state()),
                metrics={name: float(value) for name, value in metrics.items()},
            )
            with self.loggers.doing("saving a checkpoint"):
                saved = self._begin_checkpoint(state, wait=last or stopping)
            if last and not saved:
                raise RLError(
                    f"stage {self.parts.stage.name!r} is trained, but the checkpoint of its last step cannot be saved\n"
                    f"    make room, then train what is missing again with: rl resume {self.directory}"
                )
            if stopping and not last:
                how = "a checkpoint is saved" if saved else "its checkpoint cannot be saved, an earlier one is kept"
                raise self.stop.error(
                    f"stopped after step {step} of stage {self.parts.stage.name!r}; {how}\n"
                    f"    continue with: rl resume {self.directory}"
                )

    def _is_last(self, step: int) -> bool:
        return step == self.parts.stage.run.steps

    def _is_saved(self, step: int) -> bool:
        """Whether the step ends with a checkpoint, whether or not somebody asks to stop."""
        every = self.parts.stage.run.checkpoint_every
        return self._is_last(step) or (every is not None and step % every == 0)

    def _begin_checkpoint(self, state: RunState, *, wait: bool) -> bool:
        """Whether the checkpoint is written, or being written."""
        self._commit()
        self.parts.turns.training()
        with training_goes_on(self.checkpoints) as attempt:
            self.checkpoints.begin(state, self._write_models)
            self._unfinished = state.step
        if not attempt.succeeded:
            with contextlib.suppress(StorageError):  # of what other roles began to write in the background
                self.parts.policy.finish_saving()
        elif wait or not self.parts.policy.is_saving():
            return self._commit()
        return attempt.succeeded

    def _commit_if_written(self) -> None:
        """Publish a checkpoint that was written in the background, once it is complete."""
        if self._unfinished is not None and not self.parts.policy.is_saving():
            self._commit()

    def _commit(self) -> bool:
        """Wait for the checkpoint that is being written, if there is one, and publish it; False if that failed."""
        if self._unfinished is None:
            return True
        step, self._unfinished = self._unfinished, None
        with training_goes_on(self.checkpoints) as attempt:
            self.parts.policy.finish_saving()
            path = self.checkpoints.commit(step)
        if attempt.succeeded:
            self.hooks.checkpoint(step, str(path))
        return attempt.succeeded

    def _write_models(self, folder: Path) -> None:
        for model in self.parts.models.values():
            if model.role.trainable:
                target = folder / model.role.name
                target.mkdir()
                model.save(str(target))
