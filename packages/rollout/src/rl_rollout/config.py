"""The section ``rollout``."""

from __future__ import annotations

from rl_core.config.sections import ComponentConfig


class StandardConfig(ComponentConfig):
    """Whole batches, sampled by the driver; how is said in the sections generator, environment, rewards and run."""
