"""The thread that runs an engine: it steps while there is work, and does what others ask for between two steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from rl_core.contracts.generation import Completion, GenerationRequest
from rl_rollout.routing.results import Results

from rl_generation_hf.engine import Engine

_LINGERS_S = 5.0
"""Seconds without work after which the thread ends; the next work starts another."""


class EngineThread:
    """Safe to use from any thread.

    Args:
        threads: of the CPU, for computing.
        around: entered around each step.
    """

    def __init__(
        self, engine: Engine, *, threads: int, around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._around = around
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._changes: deque[_Change] = deque()
        self._results: dict[str, Results] = {}
        self._paused = False

    @property
    def in_flight(self) -> int:
        """Requests without their completion."""
        return len(self._results)

    @property
    def waiting_changes(self) -> int:
        """What was asked for and is not done: it is after the step that runs."""
        return len(self._changes)

    def submit(self, requests: Sequence[GenerationRequest], results: Results) -> None:
        """Queue valid requests, whose completions go to ``results``.

        Raises:
            ValueError: an id is in flight, or comes twice.
        """
        if not requests:
            return
        with self._changed:
            taken = self._results.keys()
            ids = [request.id for request in requests]
            if len(set(ids)) < len(ids) or not taken.isdisjoint(ids):
                twice = next(id for place, id in enumerate(ids) if id in taken or id in ids[:place])
                raise ValueError(f"request {twice}: a request with this id is in flight; ids are unique")
            self._results |= dict.fromkeys(ids, results)
            self._ask(_Change(lambda: self._engine.submit(requests)))

    def abort(self, ids: Collection[str] | None = None) -> None:
        """End requests, all by default, and deliver what they have; returns when that is done."""
        self.call(lambda: self._deliver(self._engine.abort(ids)))

    def call(self, change: Callable[[], Any]) -> Any:
        """Call ``change`` between two steps; returns or raises what it does."""
        asked = _Change(change)
        with self._changed:
            self._ask(asked)
        asked.done.wait()
        if asked.error is not None:
            raise asked.error
        return asked.result

    def pause(self) -> None:
        """Return when no step is running; none begins until :meth:`resume`. Changes are still made."""
        self.call(lambda: self._set_paused(True))

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self.call(lambda: self._set_paused(False))

    def close(self, error: BaseException) -> None:
        """Forget all requests; who waits for them gets ``error``."""
        self.call(lambda: self._fail(error))

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused

    def _ask(self, change: _Change) -> None:
        """With the lock held."""
        self._changes.append(change)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # each thread has its own
        while self._wait_for_work():
            while self._changes:
                self._changes.popleft().make()
            if self._steps():
                self._step()

    def _steps(self) -> bool:
        return not self._paused and self._engine.in_flight > 0

    def _wait_for_work(self) -> bool:
        """Whether there is some; if there is none for long, this thread is no longer the engine's."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._changes or self._steps(), timeout=_LINGERS_S)
            if not found:
                self._thread = None
        return bool(found)

    def _step(self) -> None:
        try:
            with self._around():
                finished = self._engine.step()
        except BaseException as error:  # noqa: BLE001 - raised where the completions are waited for
            self._fail(error)
        else:
            self._deliver(finished)

    def _deliver(self, completions: Sequence[Completion]) -> None:
        """Give each submission what is its own, once."""
        if not completions:
            return
        shares: dict[int, tuple[Results, list[Completion]]] = {}
        with self._changed:
            for completion in completions:
                results = self._results.pop(completion.id)
                shares.setdefault(id(results), (results, []))[1].append(completion)
        for results, share in shares.values():
            results.deliver(share)

    def _fail(self, error: BaseException) -> None:
        """What is in flight is lost."""
        self._engine.clear()
        with self._changed:
            lost, self._results = {id(results): results for results in self._results.values()}, {}
        for results in lost.values():
            results.fail(error)


class _Change:
    """Something to do between two steps."""

    def __init__(self, change: Callable[[], Any]) -> None:
        self._change = change
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        try:
            self.result = self._change()
        except BaseException as error:  # noqa: BLE001 - raised by EngineThread.call
            self.error = error
        self.done.set()
