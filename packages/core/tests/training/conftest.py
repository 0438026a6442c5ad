from __future__ import annotations

from rl_plugin_kit.fixtures import install, site

__all__ = ["install", "site"]
