"""Trainers and generators on the same GPUs take turns in their memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rl_core.errors import WorkerDied
from rl_core.training.phases import TURNS

if TYPE_CHECKING:
    from rl_core.cluster.pool import WorkerPool

logger = logging.getLogger(__name__)


class Colocation:
    """Says who has the GPUs' memory inside a block; does nothing where trainers and generators share no GPU.

    Whoever has it when a block ends keeps it until another block needs it, or gets back what the block around had.
    At first all have it.

    Args:
        shared: whether trainers and generators are on the same GPUs.
        phase: the time of handing it over is a phase (:meth:`rl_core.training.observers.Observers.phase`).
    """

    def __init__(
        self,
        pool: WorkerPool,
        *,
        shared: bool,
        phase: Callable[[str], AbstractContextManager[None]] = lambda _name: nullcontext(),
    ) -> None:
        self._pool = pool
        self._shared = shared
        self._phase = phase
        self._awake = frozenset({"trainers", "generators"})
        self._blocks: list[frozenset[str]] = []

    def training(self) -> AbstractContextManager[None]:
        """Only the trainers need memory."""
        return self._block("trainers")

    def generating(self) -> AbstractContextManager[None]:
        """Only the generators need memory."""
        return self._block("generators")

    def both(self) -> AbstractContextManager[None]:
        """Weights go from one to the other, or an evaluation asks both."""
        return self._block("trainers", "generators")

    @contextmanager
    def _block(self, *needed: str) -> Iterator[None]:
        if not self._shared:
            yield
            return
        self._blocks.append(frozenset(needed))
        try:
            self._give(self._blocks[-1])
            yield
        finally:
            self._blocks.pop()
            if self._blocks:
                self._give(self._blocks[-1])

    def _give(self, wanted: frozenset[str]) -> None:
        if wanted == self._awake:
            return
        with self._phase(TURNS):
            # Those who leave go first: there may be no room for all.
            for group in sorted(self._awake - wanted):
                self._tell(group, "sleep")
            for group in sorted(wanted - self._awake):
                self._tell(group, "wake")

    def _tell(self, group: str, method: str) -> None:
        if group == "trainers":
            self._pool.get([w.call.remote(method) for w in self._pool.trainers], what=f"{group}: {method}")
        else:
            self._each_generator(method)
        self._awake = self._awake - {group} if method == "sleep" else self._awake | {group}

    def _each_generator(self, method: str) -> None:
        for call in [w.call.remote(method) for w in self._pool.generators]:
            try:
                self._pool.get([call], what=f"generators: {method}")
            except WorkerDied as death:
                if death.role == "train":
                    raise
                logger.debug("%s", death)  # the router replaces it when it next needs it
