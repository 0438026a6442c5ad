"""The contracts, configuration and run loop that post-training plugins are assembled with.

This module stays light: importing it loads nothing but itself, because every plugin's
``plugin.py`` runs it during discovery.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_core.batch import SequenceBatch as SequenceBatch
    from rl_core.component import Component as Component
    from rl_core.hookspecs import hookimpl as hookimpl

_LAZY = {
    "Component": "rl_core.component",
    "SequenceBatch": "rl_core.batch",
    "hookimpl": "rl_core.hookspecs",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("rl-core")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rl_core' has no attribute {name!r}")
