"""Generators in the place of dead ones, and more of them where the cluster has room."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rl_core.errors import RLError

if TYPE_CHECKING:
    from rl_core.cluster.pool import WorkerPool
    from rl_core.config.stage import ComponentChoice
    from rl_core.contracts.backend import WorkerContext
    from rl_core.contracts.model import ModelSpec

logger = logging.getLogger("rl")

FAILED_STARTS = 3
"""After this many replacements in a row that could not be started, no further one is tried."""


class Replacements(Protocol):
    """Where further replicas come from; see :class:`GeneratorReplacements`.

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


@dataclass(frozen=True)
class _Starting:
    """A generator that is being started: the call that builds and loads it, and since when (monotonic seconds)."""

    handle: Any
    loaded: Any
    since: float


class GeneratorReplacements:
    """Starts generators while the others work.

    Args:
        choice: the stage's generator.
        model, tokenizer_path: what its ``load`` is given.
        most: how many there may be.
        weights: a context with references to the current weights.
    """

    def __init__(
        self,
        *,
        pool: WorkerPool,
        choice: ComponentChoice,
        context: WorkerContext,
        model: ModelSpec,
        tokenizer_path: Path,
        most: int,
        weights: Callable[[], AbstractContextManager[list[Any]]],
    ) -> None:
        self._pool = pool
        self._choice = choice
        self._context = context
        self._model = model
        self._tokenizer_path = tokenizer_path
        self._most = most
        self._starting: list[_Starting] = []
        self._failed = 0
        self.weights = weights

    @property
    def exhausted(self) -> bool:
        """Whether so many could not be started that no further one is tried."""
        return self._failed >= FAILED_STARTS and not self._starting

    def start_missing(self, alive: int) -> None:
        """Begin to start as many as are missing from ``most`` and find room."""
        while self._failed < FAILED_STARTS and alive + len(self._starting) < self._most:
            handle = self._pool.another_generator()
            if handle is None:
                return
            loaded = handle.build.remote(
                self._choice.component.factory,
                self._choice.config,
                self._context,
                "generate",
                load=(self._model, str(self._tokenizer_path)),
            )
            self._starting.append(_Starting(handle, loaded, time.monotonic()))

    def ready(self, *, wait_s: float = 0.0) -> list[Any]:
        """Those that are loaded, each once; one that could not be started is given up with a warning."""
        import ray

        if not self._starting:
            time.sleep(wait_s)
            return []
        calls = [one.loaded for one in self._starting]
        finished, _ = ray.wait(calls, num_returns=1, timeout=wait_s)
        if finished:  # perhaps not the only one
            finished, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        ready = []
        for one in list(self._starting):
            if one.loaded in finished:
                ready += [one.handle] if self._loaded(one) else []
            elif time.monotonic() - one.since > self._patience_s:
                self._give_up(one, f"it was not ready within {self._patience_s:g} s")
        return ready

    @property
    def _patience_s(self) -> float:
        deadlines = self._pool.deadlines
        return deadlines.start_s + (deadlines.resources_s or 0.0)

    def _loaded(self, one: _Starting) -> bool:
        try:
            self._pool.get([one.loaded], starting=True, what="starting another generator")
        except RLError as error:
            self._give_up(one, str(error))
            return False
        self._starting.remove(one)
        self._failed = 0
        return True

    def _give_up(self, one: _Starting, why: str) -> None:
        self._starting.remove(one)
        self._pool.retire(one.handle)
        self._failed += 1
        more = "" if self._failed < FAILED_STARTS else "; no further one will be started"
        logger.warning("another generator could not be started%s: %s", more, why)
