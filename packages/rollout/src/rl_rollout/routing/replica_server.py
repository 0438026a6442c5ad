"""A generator's end of the stream, in its worker: takes requests, and hands out completions as they finish."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from rl_core.contracts.generation import Completion, GenerationRequest, StreamingGenerator
from rl_core.errors import RLError

from rl_rollout.routing.batch_only import complete_as_batches
from rl_rollout.routing.wire import PackedCompletions, PackedRequests

Failure = tuple[int, tuple[int, ...]]
"""The number of an error, for :meth:`ReplicaServer.raise_failure`, and the requests that it left without an answer."""


class ReplicaServer:
    """Its methods run on the worker's event loop, whatever the component is doing.

    Args:
        component: the worker's generator.
        run: calls a function in the component's thread: ``await run(what, function)``.
    """

    def __init__(self, component: Any, run: Callable[[str, Callable[[], Any]], Awaitable[Any]]) -> None:
        self._generator = component
        self._run = run
        self._streams = isinstance(component, StreamingGenerator)
        self._finished: list[Completion] = []
        self._failures: list[Failure] = []
        self._errors: dict[int, Exception] = {}
        self._failed = itertools.count()
        self._arrived = asyncio.Event()
        self._collecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def submit(self, packed: PackedRequests) -> None:
        """Queue requests and return; a refusal is a failure like any other."""
        requests = packed.requests()
        task = asyncio.ensure_future(self._collect(requests))
        self._collecting.add(task)
        task.add_done_callback(self._collecting.discard)

    async def completions(self, wait_s: float) -> tuple[PackedCompletions, list[Failure]]:
        """What has finished since the last call, each once; waits up to ``wait_s`` for the first."""
        if not self._finished and not self._failures and not self._closed:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), wait_s)
        finished, self._finished = self._finished, []
        failures, self._failures = self._failures, []
        return PackedCompletions.of(finished), failures

    async def raise_failure(self, number: int) -> None:
        """Raise the error, which the caller's side explains as that of any other call."""
        raise self._errors.pop(number)

    async def abort(self, ids: Collection[int] | None) -> None:
        """See :meth:`rl_core.contracts.generation.StreamingGenerator.abort`; a batch call cannot be ended."""
        if self._streams:
            await asyncio.to_thread(self._generator.abort, None if ids is None else {str(number) for number in ids})

    async def pause(self) -> None:
        """Return when no step is running; of a generator of batches nothing runs between two calls."""
        if self._streams:
            await asyncio.to_thread(self._generator.pause)

    async def resume(self) -> None:
        """Undo :meth:`pause`."""
        if self._streams:
            await asyncio.to_thread(self._generator.resume)

    def close(self) -> None:
        """Nothing more will come; called in the component's thread."""
        self._closed = True
        for task in list(self._collecting):
            task.get_loop().call_soon_threadsafe(task.cancel)
        self._loop.call_soon_threadsafe(self._arrived.set)

    async def _collect(self, requests: list[GenerationRequest]) -> None:
        """Take the completions of one submission as they come; what is not answered is a failure."""
        left = {request.id for request in requests}
        try:
            if not self._streams:
                for completion in await self._run("generate", lambda: complete_as_batches(self._generator, requests)):
                    self._take(completion, left)
            else:
                async for completion in self._generator.submit(requests):
                    self._take(completion, left)
            if left:
                raise RLError(
                    f"the generator ended its answer with {len(left)} of {len(requests)} requests not answered; the "
                    "plugin is at fault"
                )
        except Exception as error:  # noqa: BLE001 - told to the router
            number = next(self._failed)
            self._errors[number] = error
            self._failures.append((number, tuple(sorted(int(one) for one in left))))
        self._arrived.set()

    def _take(self, completion: Completion, left: set[str]) -> None:
        if completion.id not in left:
            raise RLError(f"the generator answered request {completion.id!r} twice or unasked; the plugin is at fault")
        left.discard(completion.id)
        self._finished.append(completion)
        self._arrived.set()
