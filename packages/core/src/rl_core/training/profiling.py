"""``rl run --profile``: a plugin measures where the time of a stage's steps goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rl_core.discovery.lookup import published
from rl_core.errors import ConfigError, RLError
from rl_core.training.observers import Observers, StepObserver

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rl_core.cluster.pool import WorkerPool
    from rl_core.config.stage import StageConfig
    from rl_core.discovery.registry import Registry


class StageProfile(AbstractContextManager[Any], Protocol):
    """What the hook ``profile_stage`` returns; entered before the first step and left after the last."""

    @property
    def observers(self) -> Sequence[StepObserver]:
        """They are told of steps and phases before all others."""
        ...

    def timed(self, models: Mapping[str, Any], observers: Observers, *, policy: str) -> Mapping[str, Any]:
        """Models whose calls are phases; ``policy`` is the role that is generated from."""
        ...

    def render(self) -> RenderableType | None:
        """What is shown at the end of the run."""
        ...


def require_profiler(registry: Registry) -> None:
    """Raise ConfigError unless a plugin can profile."""
    if not registry.implements("profile_stage"):
        package = published()["hook"]["profile_stage"]
        raise ConfigError(f"--profile needs {package}, which is not installed\n    pip install {package}")


def profile_of(stage: StageConfig, pool: WorkerPool, directory: Path, registry: Registry) -> StageProfile:
    """The profile of a stage whose folder is ``directory``.

    Raises:
        RLError: the plugin that makes it failed.
    """
    outcome = registry.call("profile_stage", stage=stage, pool=pool, directory=directory)[0]
    if outcome.error is not None:
        raise RLError(f"plugin {outcome.package}: profile_stage failed: {outcome.error}") from outcome.error
    return outcome.result
