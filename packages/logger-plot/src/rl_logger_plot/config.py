"""Config of the plot logger."""

from __future__ import annotations

from pydantic import Field
from rl_core.config.sections import ComponentConfig


class PlotConfig(ComponentConfig):
    """Curves drawn from ``metrics.jsonl``, which the ``jsonl`` logger writes."""

    every: int | None = Field(
        None, ge=1, description="Draw after every this many steps as well; without it only at the end of the run."
    )
    file: str = Field(
        "curves.png",
        pattern=r"^[^/\\]+\.(png|svg|pdf)$",
        description="Name of the picture in the run directory; ends in .png, .svg or .pdf.",
    )
