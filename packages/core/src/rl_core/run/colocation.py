"""Trainers and generators on the same GPUs take turns in their memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_core.cluster.workers import WorkerPool


class Colocation:
    """Puts to sleep whoever does not work now; does nothing where they share no GPU.

    Both are awake at first and while weights are handed over.

    Args:
        shared: whether trainers and generators are on the same GPUs.
    """

    def __init__(self, pool: WorkerPool, *, shared: bool) -> None:
        self._pool = pool
        self._shared = shared
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

    def _turn(self, *, trainers: bool, generators: bool) -> None:
        if not self._shared:
            return
        wanted = {"trainers": trainers, "generators": generators}
        # Those who leave go first: there may be no room for all.
        for group in sorted(wanted, key=lambda name: wanted[name]):
            if wanted[group] != self._awake[group]:
                method = "wake" if wanted[group] else "sleep"
                workers = self._pool.trainers if group == "trainers" else self._pool.generators
                self._pool.get([w.call.remote(method) for w in workers], what=f"{group}: {method}")
                self._awake[group] = wanted[group]
