"""A generated package that counts as installed."""

from __future__ import annotations

from rl_core.testing.fixtures import generate, site

__all__ = ["generate", "site"]
