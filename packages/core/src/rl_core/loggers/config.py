"""Config of the built-in logger."""

from __future__ import annotations

from rl_core.config.sections import ComponentConfig


class JsonlConfig(ComponentConfig):
    """``metrics.jsonl`` and ``samples.jsonl`` in the run directory."""
