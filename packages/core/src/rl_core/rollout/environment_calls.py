"""Calling an environment for many conversations at once, each call with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Coroutine, Sequence
from concurrent import futures
from concurrent.futures import Future as Call
from typing import Any

from rl_core.contracts.data import Row
from rl_core.contracts.environment import Environment, Turn
from rl_core.contracts.tokenizer import Message
from rl_core.errors import RLError

_COUNT_INSTEAD = "or set environment.on_error: end, which ends such conversations and counts them"


class EnvironmentFailure(RLError):
    """An environment raised, or took too long; ``environment.on_error`` says what follows."""


class EnvironmentCalls:
    """Runs an environment's methods: coroutines on one event loop, plain functions in threads.

    A call that is not done after ``timeout_s`` is given up. Its coroutine is cancelled; a thread cannot be, so it
    goes on until it returns or the process ends, without holding up either, and what it returns is dropped.

    Args:
        name: how messages call the environment, e.g. ``environment 'tools' (rl-env-tools)``.
        concurrency: calls that run at once.
    """

    def __init__(self, environment: Environment, *, name: str, timeout_s: float, concurrency: int) -> None:
        self.environment = environment
        self.name = name
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._starting = threading.Lock()

    def start(self, row: Row, seed: int, *, place: str) -> Call[Any]:
        """``environment.start``; ``place`` is the row's, for messages."""
        return self._submit(self._call(self.environment.start, row, seed, doing=f"start, for {place}"))

    def step(self, started: Call[Any], conversation: Sequence[Message], *, turn: int, place: str) -> Call[Turn]:
        """``environment.step`` once the conversation has started."""

        async def step() -> Turn:
            state = await asyncio.wrap_future(started)
            doing = f"step, after turn {turn} of the conversation of {place}"
            return await self._call(self.environment.step, state, conversation, doing=doing)

        return self._submit(step())

    def end(self, started: Call[Any], *, place: str) -> Call[None]:
        """``environment.end``, where there is one, once the conversation has started."""

        async def end() -> None:
            state = await asyncio.wrap_future(started)
            ending = getattr(self.environment, "end", None)
            if ending is not None:
                await self._call(ending, state, doing=f"end, for {place}")

        return self._submit(end())

    def wait(self, calls: Sequence[Call[Any]], *, at_most_s: float | None, all_of_them: bool) -> None:
        """Return when all calls are done (or one of them), or after ``at_most_s``.

        Raises:
            RLError: nothing can be done because a coroutine does not give the event loop back.
        """
        when = futures.ALL_COMPLETED if all_of_them else futures.FIRST_COMPLETED
        while True:
            patience = self._timeout_s if at_most_s is None else at_most_s
            done, waiting = futures.wait(calls, timeout=patience, return_when=when)
            if not waiting or (done and not all_of_them) or at_most_s is not None:
                return
            self._check_loop()

    def close(self) -> None:
        """Let the environment end what it holds, and stop the event loop."""
        close = getattr(self.environment, "close", None)
        if close is not None:
            close()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Call[Any]:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="environment", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _check_loop(self) -> None:
        try:
            self._submit(asyncio.sleep(0)).result(timeout=self._timeout_s)
        except TimeoutError:
            raise RLError(
                f"{self.name}: one of its coroutines has held the event loop for more than {self._timeout_s:g} s, so "
                "that no other conversation goes on\n    await what takes long (asyncio.sleep, an asynchronous "
                "client), or write the method without async"
            ) from None

    async def _call(self, method: Callable[..., Any], *arguments: Any, doing: str) -> Any:
        async with self._slots:
            call = asyncio.ensure_future(_result(method, *arguments))
            await asyncio.wait({call}, timeout=self._timeout_s)
            if not call.done():
                call.cancel()
                raise EnvironmentFailure(
                    f"{self.name} took longer than {self._timeout_s:g} s in {doing}\n"
                    f"    raise environment.step_timeout_s, {_COUNT_INSTEAD}"
                )
        try:
            return call.result()
        except RLError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            text = " ".join(str(error).split())
            raise EnvironmentFailure(
                f"{self.name} raised {type(error).__name__} in {doing}: {text} ({_line_of(error)})\n"
                f"    mend it, {_COUNT_INSTEAD}"
            ) from error


async def _result(method: Callable[..., Any], *arguments: Any) -> Any:
    if inspect.iscoroutinefunction(method):
        return await method(*arguments)
    result = await _in_thread(method, *arguments)
    return await result if inspect.isawaitable(result) else result


def _in_thread(method: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    """The result of a plain function that runs in a thread of its own.

    The thread is a daemon: one that hangs keeps neither the others waiting nor the process alive, as those of an
    executor would.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            # A future refuses StopIteration, which would end the coroutine that awaits it.
            future.set_exception(RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)

    def work() -> None:
        result, failure = None, None
        try:
            result = method(*arguments)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a thread is the environment's failure, too
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=work, name="environment call", daemon=True).start()
    return future


def _line_of(error: BaseException) -> str:
    """``file:line`` that the exception comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "no traceback"
