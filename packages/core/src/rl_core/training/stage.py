"""Training one stage: what it is made of, from its newest checkpoint to its last step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.training.evaluation import evaluations_of
from rl_core.training.loop import Loop
from rl_core.training.saving import Checkpoints, restore
from rl_core.training.state import RunState

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig
    from rl_core.training.assembly import LoadedStage
    from rl_core.training.checkpoint import CheckpointStore
    from rl_core.training.driver import DriverParts
    from rl_core.training.logger_group import LoggerGroup
    from rl_core.training.observers import Observers
    from rl_core.training.profiling import StageProfile
    from rl_core.training.signals import StopRequest

logger = logging.getLogger("rl")


def train_stage(
    stage: StageConfig,
    driver: DriverParts,
    loaded: LoadedStage,
    *,
    store: CheckpointStore,
    loggers: LoggerGroup,
    observers: Observers,
    step_end: Callable[[int, Mapping[str, float]], None],
    saved: Callable[[int, str], None],
    stop: StopRequest,
    directory: Path,
    resume_from: Path | None = None,
    profile: StageProfile | None = None,
) -> list[dict[str, Any]]:
    """Train from the checkpoint ``resume_from``, or from the first step; returns the last evaluation's samples.

    Args:
        step_end: told the metrics of each step once they are logged.
        saved: told the step and the folder of each checkpoint once it is visible.
        directory: of the run.
        profile: one of the observers.

    Raises:
        Interrupted: the user, a signal or the time limit asked to stop.
        RLError: see :meth:`rl_core.training.loop.Loop.run`, or the checkpoint cannot be continued from.
    """
    algorithm, models, rollouts = driver.algorithm, loaded.models, driver.rollouts
    start = RunState(stage=stage.name, step=0, position=0, weights_version=0, fingerprint=driver.fingerprint)
    if resume_from is not None:
        state = restore(resume_from, models, algorithm, name=stage.algorithm.name)
        start = replace(state, stage=stage.name, fingerprint=driver.fingerprint)
        logger.info("%s: continuing after step %d", stage.name, start.step)
    if stop:
        raise stop.error(
            f"stopped before step {start.step + 1} of stage {stage.name!r}\n    continue with: rl resume {directory}"
        )
    algorithm.start(str(store.folder.parent))
    feed = loaded.source.feed(start.position)
    with closing(feed), profile or contextlib.nullcontext():
        return Loop(
            stage=stage,
            start=start,
            feed=feed,
            algorithm=algorithm,
            models=profile.timed(models, observers, policy=loaded.policy.role.name) if profile else models,
            publish=rollouts.publish if rollouts is not None and stage.generator is not None else lambda _version: None,
            evaluations=evaluations_of(stage, driver, models=models),
            checkpoints=Checkpoints(store, models, published=saved),
            memory=loaded.memory,
            loggers=loggers,
            observers=observers,
            step_end=step_end,
            stop=stop,
            directory=directory,
        ).run()
