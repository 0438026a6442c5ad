"""What of a stage lives in the driver: text, data, the algorithm, the rollout source, evaluators."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl_core.contracts.rollout import RolloutJob, RolloutSource
from rl_core.training.progress import working

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice, StageConfig
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.data import Row
    from rl_core.contracts.evaluator import Evaluator
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.discovery.registry import Registry

logger = logging.getLogger("rl")


@dataclass(frozen=True)
class DriverParts:
    """What of a stage lives in the driver.

    Attributes:
        fingerprint: of the training data.
        rollouts: what samples and scores completions; None where nothing does.
    """

    tokenizer: Tokenizer
    rows: Sequence[Row]
    eval_rows: Sequence[Row]
    fingerprint: str
    algorithm: Algorithm
    evaluators: tuple[tuple[ComponentChoice, Evaluator], ...]
    rollouts: RolloutSource | None = None

    def close(self) -> None:
        """Let the rollout source end the processes and connections it holds."""
        if self.rollouts is not None:
            self.rollouts.close()


def driver_parts(stage: StageConfig, registry: Registry, *, loaded: DriverParts | None = None) -> DriverParts:
    """Load data and tokenizer and build what runs in the driver; no Ray needed.

    Args:
        loaded: parts of the same stage whose data and tokenizer are taken; all that changes while a stage runs is
            built anew.
    """

    def build(choice: ComponentChoice) -> Any:
        return registry.resolve(choice.component.factory)(choice.config)

    if loaded is not None:
        return replace(loaded, **_changing(stage, build, loaded.rows, loaded.tokenizer))
    with working(f"{stage.name}: loading data"):
        source = build(stage.data)
        rows = source.load()
        skipped = source.report().get("skipped", 0)
        logger.info("%s: %d rows%s", stage.name, len(rows), f", {skipped} skipped" if skipped else "")
        eval_rows = build(stage.eval_data).load() if stage.eval_data else []
        tokenizer = build(stage.tokenizer)
        tokenizer.load(stage.model.path, rows, trust_remote_code=stage.model.trust_remote_code)
    return DriverParts(
        tokenizer=tokenizer,
        rows=rows,
        eval_rows=eval_rows,
        fingerprint=source.fingerprint(),
        **_changing(stage, build, rows, tokenizer),
    )


def _changing(
    stage: StageConfig, build: Callable[[ComponentChoice], Any], rows: Sequence[Row], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The parts with a state that training changes."""
    algorithm = build(stage.algorithm)
    rollouts: RolloutSource | None = build(stage.rollout) if stage.rollout is not None else None
    if rollouts is not None:
        rollouts.prepare(RolloutJob(stage, rows=rows, tokenizer=tokenizer, algorithm=algorithm, build=build))
    return {
        "algorithm": algorithm,
        "evaluators": tuple((choice, build(choice)) for choice in stage.evaluators),
        "rollouts": rollouts,
    }
