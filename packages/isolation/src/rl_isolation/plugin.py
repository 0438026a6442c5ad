"""The check of functions that a config names; imported at discovery, so it stays light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rl_core.hookspecs import hookimpl


@hookimpl
def validate_functions(references: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """Import them as a run would, in a process of their own."""
    from rl_isolation.functions import broken_functions

    return broken_functions(references)
