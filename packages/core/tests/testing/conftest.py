from __future__ import annotations

from rl_core.testing.fixtures import generate, install, site

__all__ = ["generate", "install", "site"]
