"""What ``rl check`` shows of a config in which it found no errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType


class RunPlan(Protocol):
    """What the hook ``plan_run`` returns."""

    def render(self, config: Any, registry: Any) -> RenderableType:
        """What people read of the plan.

        Args:
            config: the validated :class:`rl_core.config.stage.RunConfig`.
            registry: the installed components.
        """
        ...
