"""A Ray cluster that a run joins by a name instead of an address."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class NamedCluster(Protocol):
    """What the hook ``find_cluster`` returns."""

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        ...

    @property
    def token(self) -> Path:
        """The file with the token that Ray asks for."""
        ...

    @property
    def pid(self) -> int:
        """The process on this machine with which the cluster ends."""
        ...
