"""The training loop. There is one, for every algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_secrets.redaction import mask_names

from rl_core.errors import RLError
from rl_core.training.algorithm_step import algorithm_step
from rl_core.training.phases import ALGORITHM, CHECKPOINT, EVALUATION, LOGGING, SAMPLING, WEIGHTS

if TYPE_CHECKING:
    from rl_core.batch import SequenceBatch
    from rl_core.config.stage import StageConfig
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.feed import Feed
    from rl_core.training.colocation import Colocation
    from rl_core.training.evaluation import Evaluations
    from rl_core.training.logger_group import LoggerGroup
    from rl_core.training.observers import Observers
    from rl_core.training.saving import Checkpoints
    from rl_core.training.signals import StopRequest
    from rl_core.training.state import RunState

Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Loop:
    """Runs one stage from a state to its last step.

    Attributes:
        start: what has been trained before; step 0 for a new stage.
        models: every role by its name, as the algorithm calls them.
        publish: gives the generators, if there are any, the policy's weights as this version.
        memory: of GPUs that trainers and generators share.
        observers: are told about steps and phases, and add metrics.
        step_end: told the metrics of each step once they are logged.
        directory: of the run.
    """

    stage: StageConfig
    start: RunState
    feed: Feed
    algorithm: Algorithm
    models: Mapping[str, Any]
    publish: Callable[[int], None]
    evaluations: Evaluations
    checkpoints: Checkpoints
    memory: Colocation
    loggers: LoggerGroup
    observers: Observers
    step_end: Callable[[int, Mapping[str, float]], None]
    stop: StopRequest
    directory: Path

    def run(self) -> Samples:
        """Train to the last step; returns the samples of the final evaluation.

        Raises:
            Interrupted: the user, a signal or the time limit asked to stop; a checkpoint was saved.
            RLError: the batch of a non-finite loss was saved, or a part failed.
        """
        phase, memory = self.observers.phase, self.memory
        shown = self._prepare()
        for step in range(self.start.step + 1, self.stage.run.steps + 1):
            with self.observers.step(step) as metrics:
                with phase(SAMPLING):
                    draw = self.feed.next(step)
                with phase(ALGORITHM), memory.training():
                    metrics |= draw.metrics | self._algorithm_step(step, draw.batch)
                if self.feed.samples or self.evaluations.due(step):
                    with phase(WEIGHTS), memory.both():
                        self.publish(self._version(step))
                evaluated, samples = self._evaluate(step)
                if self.checkpoints.writing:
                    with phase(CHECKPOINT):
                        self.checkpoints.publish_written()
                logged = mask_names(metrics | evaluated | self.observers.metrics())
                with phase(LOGGING):
                    self.loggers.log(step, logged)
                    self.loggers.log_samples(step, [*draw.samples, *samples])
                    self.step_end(step, logged)
                self.stop.step_done()
                if self.stop or self._is_saved(step):
                    with phase(CHECKPOINT), memory.training():
                        self._save(step, logged)
            shown = samples or shown
        return shown

    def _prepare(self) -> Samples:
        """What comes before the first step: weights for the generators, and the evaluation that is logged as step 0,
        which a resumed run has already."""
        step = self.start.step
        samples: Samples = []
        if self.feed.samples or not step:
            with self.memory.both():
                self.publish(self._version(step))
        if not step and self.evaluations.due(0):
            metrics, samples = self._evaluate(0)
            self.loggers.log(0, mask_names(metrics | self.observers.metrics()))
            self.loggers.log_samples(0, samples)
        self.stop.steps_begin()
        return samples

    def _algorithm_step(self, step: int, batch: SequenceBatch) -> dict[str, float]:
        return algorithm_step(
            self.algorithm, batch, self.models, stage=self.stage.name, step=step, directory=self.directory
        )

    def _evaluate(self, step: int) -> tuple[dict[str, float], Samples]:
        if not self.evaluations.due(step):
            return {}, []
        with self.observers.phase(EVALUATION), self.memory.both():
            return self.evaluations.run(step)

    def _save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Save a checkpoint, and end the run where it is asked to stop."""
        # Looked at once: a signal during the save stops after the next step.
        stopping, last, name = bool(self.stop), step == self.stage.run.steps, self.stage.name
        state = replace(
            self.start,
            step=step,
            position=self.feed.position,
            weights_version=self._version(step),
            algorithm=dict(self.algorithm.state()),
            metrics={key: float(value) for key, value in metrics.items()},
        )
        saved = self.checkpoints.save(state, wait=last or stopping)
        if last and not saved:
            raise RLError(
                f"stage {name!r} is trained, but the checkpoint of its last step cannot be saved\n"
                f"    make room, then train what is missing again with: rl resume {self.directory}"
            )
        if stopping and not last:
            how = "a checkpoint is saved" if saved else "its checkpoint cannot be saved, an earlier one is kept"
            raise self.stop.error(
                f"stopped after step {step} of stage {name!r}; {how}\n    continue with: rl resume {self.directory}"
            )

    def _is_saved(self, step: int) -> bool:
        """Whether the step ends with a checkpoint, whether or not somebody asks to stop."""
        run = self.stage.run
        return step == run.steps or (run.checkpoint_every is not None and step % run.checkpoint_every == 0)

    def _version(self, step: int) -> int:
        """Of the weights after ``step``."""
        return self.start.weights_version + step - self.start.step
