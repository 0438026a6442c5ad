"""Config of the ``console`` logger."""

from __future__ import annotations

from pydantic import Field
from rl_core.config.sections import ComponentConfig


class ConsoleConfig(ComponentConfig):
    """Progress in the terminal."""

    every_s: float = Field(
        5.0, ge=0, description="Least seconds between two progress lines where the output is not a terminal."
    )
