"""Old names of what is now the package rl-plugin-kit (docs/compatibility.md)."""

from __future__ import annotations

import importlib.util
import warnings


def warn_moved(old: str, new: str) -> None:
    """Say that the module ``old``, which is being imported, is now ``new``.

    Raises:
        ModuleNotFoundError: rl-plugin-kit is not installed; says what to type.
    """
    if importlib.util.find_spec("rl_plugin_kit") is None:
        raise ModuleNotFoundError(
            f'{old} is now {new}, which is not installed\n    pip install "rl-core[testing]"', name="rl_plugin_kit"
        )
    warnings.warn(f"{old} is now {new}; the old name goes in 0.3", DeprecationWarning, stacklevel=3)
