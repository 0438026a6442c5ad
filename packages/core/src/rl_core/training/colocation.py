"""Trainers and generators on the same GPUs take turns in their memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rl_core.errors import WorkerDied

if TYPE_CHECKING:
    from rl_core.cluster.workers import WorkerPool

logger = logging.getLogger(__name__)


class Colocation:
    """Puts to sleep whoever does not work now; does nothing where they share no GPU.

    Both are awake at first and while weights are handed over.

    Attributes:
        shared: whether trainers and generators are on the same GPUs.
    """

    def __init__(self, pool: WorkerPool, *, shared: bool) -> None:
        self._pool = pool
        self.shared = shared
        self._awake = {"trainers": True, "generators": True}

    def training(self) -> None:
        """Only the trainers need memory."""
        self._turn(trainers=True, generators=False)

    def generating(self) -> None:
        """Only the generators need memory."""
        self._turn(trainers=False, generators=True)

    def both(self) -> None:
        """Weights go from one to the other."""
        self._turn(trainers=True, generators=True)

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Both are awake inside the block, and afterwards whoever was before."""
        before = dict(self._awake)
        self.both()
        try:
            yield
        finally:
            self._turn(**before)

    def _turn(self, *, trainers: bool, generators: bool) -> None:
        if not self.shared:
            return
        wanted = {"trainers": trainers, "generators": generators}
        # Those who leave go first: there may be no room for all.
        for group in sorted(wanted, key=lambda name: wanted[name]):
            if wanted[group] != self._awake[group]:
                method = "wake" if wanted[group] else "sleep"
                if group == "trainers":
                    self._pool.get([w.call.remote(method) for w in self._pool.trainers], what=f"{group}: {method}")
                else:
                    self._each_generator(method)
                self._awake[group] = wanted[group]

    def _each_generator(self, method: str) -> None:
        for call in [w.call.remote(method) for w in self._pool.generators]:
            try:
                self._pool.get([call], what=f"generators: {method}")
            except WorkerDied as death:
                if death.role == "train":
                    raise
                logger.debug("%s", death)  # the router replaces it when it next needs it
