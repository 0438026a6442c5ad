"""What a router asks where further generator replicas come from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Replacements(Protocol):
    """Where further replicas come from; see :class:`rl_core.training.replacements.GeneratorReplacements`.

    Attributes:
        exhausted: whether no further replica will come, because too many could not be started.
    """

    @property
    def exhausted(self) -> bool: ...

    def start_missing(self, alive: int) -> None:
        """Begin to start replicas, in the background, where fewer are alive than there could be."""
        ...

    def ready(self, *, wait_s: float = 0.0) -> list[Any]:
        """Replicas that are ready but for their weights; waits at most ``wait_s`` for one."""
        ...

    def weights(self) -> AbstractContextManager[list[Any]]:
        """References to the current weights, for replicas that arrive while there are no new ones."""
        ...
