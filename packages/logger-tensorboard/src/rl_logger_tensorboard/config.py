"""Config of the TensorBoard logger."""

from __future__ import annotations

from pydantic import Field
from rl_core.config.sections import ComponentConfig


class TensorboardConfig(ComponentConfig):
    """Event files in ``<run directory>/tensorboard``."""

    samples: bool = Field(True, description="Write generated samples as text as well.")
    flush_s: float = Field(10.0, gt=0, description="Seconds after which new values are on disk at the latest.")
