from __future__ import annotations

from rl_core.testing.fixtures import install, site

__all__ = ["install", "site"]
