"""What of a stage lives in the driver: text, data, the algorithm, rewards, the environment, evaluators."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl_core.rewards.scoring import WeightedRewards, scorer
from rl_core.rollout.environment_calls import EnvironmentCalls
from rl_core.training.progress import working

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice, StageConfig
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.data import Row
    from rl_core.contracts.environment import Environment
    from rl_core.contracts.evaluator import Evaluator
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.discovery.registry import Registry

logger = logging.getLogger("rl")


@dataclass(frozen=True)
class DriverParts:
    """What of a stage lives in the driver: text, data, the algorithm, rewards, evaluators."""

    tokenizer: Tokenizer
    rows: Sequence[Row]
    eval_rows: Sequence[Row]
    fingerprint: str
    algorithm: Algorithm
    rewards: WeightedRewards | None
    evaluators: tuple[tuple[ComponentChoice, Evaluator], ...]
    environment: EnvironmentCalls | None = None

    def close(self) -> None:
        """Let rewards and the environment end the processes and connections they hold."""
        for part in (self.rewards, self.environment):
            if part is not None:
                part.close()


def driver_parts(stage: StageConfig, registry: Registry, *, loaded: DriverParts | None = None) -> DriverParts:
    """Load data and tokenizer and build what runs in the driver; no Ray needed.

    Args:
        loaded: parts of the same stage whose data and tokenizer are taken; all that changes while a stage runs is
            built anew.
    """

    def build(choice: ComponentChoice) -> Any:
        return registry.resolve(choice.component.factory)(choice.config)

    if loaded is not None:
        return replace(loaded, **_changing(stage, build))
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
        **_changing(stage, build),
    )


def _changing(stage: StageConfig, build: Callable[[ComponentChoice], Any]) -> dict[str, Any]:
    """The parts with a state that training changes."""
    environment = stage.environment
    rewards = [(choice, scorer(choice, build)) for choice in stage.rewards]
    return {
        "algorithm": build(stage.algorithm),
        "rewards": WeightedRewards(rewards) if rewards or environment else None,
        "evaluators": tuple((c, build(c)) for c in stage.evaluators),
        "environment": _environment_calls(environment, build(environment)) if environment else None,
    }


def _environment_calls(choice: ComponentChoice, environment: Environment) -> EnvironmentCalls:
    return EnvironmentCalls(
        environment,
        name=f"environment {choice.name!r} ({choice.package})",
        timeout_s=choice.config.step_timeout_s,
        concurrency=choice.config.concurrency,
    )
