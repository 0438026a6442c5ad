"""What a worker keeps for the groups whose first rank it is: a port that is held, and a folder on its machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import EnvironmentProblem
from rl_core.network import held_socket

_PREFIX = "rl-group-"
_SETTLED_S = 60.0
"""A folder this old is locked by whoever made it, if that process lives."""


@dataclass
class _Place:
    rendezvous: Rendezvous
    bound: socket.socket
    lock: int | None

    def close(self) -> None:
        self.bound.close()
        remove_folder(self.rendezvous.folder)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


class RendezvousPoints:
    """Opened for one group after the other; each is used once.

    Folders of processes that were killed are removed when the next one is opened on their machine.
    """

    def __init__(self) -> None:
        self._places: dict[str, list[_Place]] = {}

    def open(self, purpose: str, *, address: str, one_machine: bool) -> Rendezvous:
        """A place for a new group.

        Args:
            purpose: groups of one purpose follow each other. The last one's place stays, for it may still be in use;
                the one before that is closed.
            address: of this machine, where the port is held.
            one_machine: all members are here, and meet in a folder.

        Raises:
            EnvironmentProblem: no folder can be made, or no port bound.
        """
        earlier = self._places.setdefault(purpose, [])
        while len(earlier) > 1:
            earlier.pop(0).close()
        folder, lock = _new_folder() if one_machine else ("", None)
        try:
            bound = held_socket(address)
        except OSError as error:
            if lock is not None:
                os.close(lock)
            remove_folder(folder)
            raise EnvironmentProblem(
                f"no port of {address} can be bound on {socket.gethostname()}: {error}\n    run: rl doctor"
            ) from error
        made = Rendezvous(address, bound.getsockname()[1], folder, bound.fileno())
        earlier.append(_Place(made, bound, lock))
        return made

    def close(self) -> None:
        """Give everything back; the groups have ended."""
        for places in self._places.values():
            while places:
                places.pop().close()


def remove_folder(folder: str) -> None:
    """Remove a place's folder, if it is one and on this machine."""
    if os.path.basename(folder).startswith(_PREFIX) and os.path.isabs(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> tuple[str, int]:
    """A folder with mode 0700, and the descriptor of a lock on it that ends with this process."""
    root = tempfile.gettempdir()
    _sweep(Path(root))
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=root)
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise EnvironmentProblem(
            f"no folder for a process group can be made in {root} on {socket.gethostname()}: {error.strerror}\n"
            "    free some space there, or set TMPDIR to another folder"
        ) from error
    return folder, lock


def _sweep(root: Path) -> None:
    """Remove the folders of this user's processes that are gone."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _SETTLED_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
