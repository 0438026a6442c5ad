"""Calling an environment for many conversations at once, each call with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent import futures
from concurrent.futures import Future as Call
from typing import Any

from rl_core.contracts.data import Row
from rl_core.contracts.environment import CallFailed, Environment, Turn
from rl_core.contracts.tokenizer import Message
from rl_core.errors import RLError
from rl_isolation.describe import message_of, one_line, place_of
from rl_isolation.soft_limit import SoftLimitThreads

COUNT_INSTEAD = "or set environment.on_error: end, which ends such conversations and counts them"


_GROW_EVERY_S = 0.002
"""How long calls wait for a thread before there are twice as many."""


class EnvironmentFailure(RLError):
    """An environment raised, or took too long; ``environment.on_error`` says what follows."""


class EnvironmentCalls:
    """Runs an environment's methods: coroutines on one event loop, plain functions in threads.

    A call that is not done after ``timeout_s`` is given up. Its coroutine is cancelled; a thread cannot be
    (:mod:`rl_isolation.soft_limit`), and what it returns later is dropped.

    Args:
        name: how messages call the environment, e.g. ``environment 'tools' (rl-env-tools)``.
        concurrency: calls that run at once.
    """

    def __init__(self, environment: Environment, *, name: str, timeout_s: float, concurrency: int) -> None:
        self.environment = environment
        self.name = name
        self._timeout_s = timeout_s
        self._patience_s = None if getattr(environment, "keeps_deadlines", False) else timeout_s
        self._threads = SoftLimitThreads(concurrency, timeout_s=timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._starting = threading.Lock()

    def start(self, row: Row, seed: int, *, place: str) -> Call[Any]:
        """``environment.start``; ``place`` is the row's, for messages."""
        return self._submit(self.environment.start, (row, seed), doing=f"start, for {place}")

    def step(self, started: Call[Any], conversation: Sequence[Message], *, turn: int, place: str) -> Call[Turn]:
        """``environment.step`` once the conversation has started."""
        doing = f"step, after turn {turn} of the conversation of {place}"
        return self._after(started, self.environment.step, (conversation,), doing=doing)

    def end(self, started: Call[Any], *, place: str) -> Call[Any]:
        """``environment.end``, where there is one, once the conversation has started."""
        ending = getattr(self.environment, "end", None)
        return started if ending is None else self._after(started, ending, (), doing=f"end, for {place}")

    def wait(self, calls: Sequence[Call[Any]], *, at_most_s: float | None, all_of_them: bool) -> None:
        """Return when all calls are done (or one of them), or after ``at_most_s``.

        Raises:
            RLError: nothing can be done because a coroutine does not give the event loop back.
        """
        when = futures.ALL_COMPLETED if all_of_them else futures.FIRST_COMPLETED
        began = progress = time.monotonic()
        left = len(calls)
        while True:
            patience = self._threads.give_up_late()
            if self._threads.grow():
                patience = min(patience, _GROW_EVERY_S)
            if at_most_s is not None:
                patience = min(patience, max(0.0, began + at_most_s - time.monotonic()))
            done, waiting = futures.wait(calls, timeout=patience, return_when=when)
            now = time.monotonic()
            if not waiting or (done and not all_of_them) or (at_most_s is not None and now >= began + at_most_s):
                return
            if len(waiting) < left:
                progress, left = now, len(waiting)
            elif now - progress >= self._timeout_s:
                self._check_loop()
                progress = now

    def close(self) -> None:
        """Let the environment end what it holds, cancel its coroutines and stop the threads."""
        close = getattr(self.environment, "close", None)
        if close is not None:
            close()
        self._threads.close()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _after(self, started: Call[Any], method: Callable[..., Any], rest: tuple, *, doing: str) -> Call[Any]:
        """``method(state, *rest)`` when the state is there; fails as ``started`` did where it is not."""
        result: Call[Any] = Call()

        def proceed(started: Call[Any]) -> None:
            if (error := started.exception()) is not None:
                result.set_exception(error)
            else:
                self._submit(method, (started.result(), *rest), doing=doing, result=result)

        started.add_done_callback(proceed)
        return result

    def _submit(
        self, method: Callable[..., Any], arguments: tuple, *, doing: str, result: Call[Any] | None = None
    ) -> Call[Any]:
        result = Call() if result is None else result
        if inspect.iscoroutinefunction(method):
            self._run_on_loop(method(*arguments), result, doing)
            return result

        def work() -> Any:
            try:
                return method(*arguments)
            except BaseException as error:
                raise self._failure(error, doing) from error

        returned: Call[Any] = Call()
        returned.add_done_callback(lambda call: self._pass_on(call, result, doing))
        self._threads.submit(work, returned, late=lambda: self._late(doing))
        return result

    def _pass_on(self, returned: Call[Any], result: Call[Any], doing: str) -> None:
        """What a plain function returned is the result, or (a wrapped coroutine function) is still to be awaited."""
        if (error := returned.exception()) is not None:
            result.set_exception(error)
        elif inspect.isawaitable(returned.result()):
            self._run_on_loop(returned.result(), result, doing)
        else:
            result.set_result(returned.result())

    def _run_on_loop(self, work: Awaitable[Any], result: Call[Any], doing: str) -> None:
        async def run() -> None:
            async with self._slots:
                task = asyncio.ensure_future(work)
                await asyncio.wait({task}, timeout=self._patience_s)
            if not task.done():
                task.cancel()
                result.set_exception(self._late(doing))
                return
            try:
                result.set_result(task.result())
            except BaseException as error:  # noqa: BLE001 - the environment's, handed to whoever waits
                result.set_exception(self._failure(error, doing))

        asyncio.run_coroutine_threadsafe(run(), self._running_loop())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="environment", daemon=True).start()
            return self._loop

    def _check_loop(self) -> None:
        if self._loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(timeout=self._timeout_s + 1.0)
        except TimeoutError:
            raise RLError(
                f"{self.name}: one of its coroutines has held the event loop for more than {self._timeout_s:g} s, so "
                "that no other conversation goes on\n    await what takes long (asyncio.sleep, an asynchronous "
                "client), or write the method without async"
            ) from None

    def _late(self, doing: str, *, at: str = "") -> EnvironmentFailure:
        where = f" ({at})" if at else ""
        return EnvironmentFailure(
            f"{self.name} took longer than {self._timeout_s:g} s in {doing}{where}\n"
            f"    raise environment.step_timeout_s, {COUNT_INSTEAD}"
        )

    def _failure(self, error: BaseException, doing: str) -> RLError:
        if isinstance(error, RLError):
            return error
        if self._patience_s is None and isinstance(error, TimeoutError):
            return self._late(doing, at=one_line(message_of(error)))
        if isinstance(error, CallFailed):
            what, detail = error.what, error.detail
        else:
            what = f"raised {type(error).__name__}"
            detail = f": {one_line(message_of(error))} ({place_of(error) or 'no traceback'})"
        return EnvironmentFailure(f"{self.name} {what} in {doing}{detail}\n    fix it, {COUNT_INSTEAD}")


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """The loop's thread: until it is stopped; then what is unfinished is cancelled, and the loop closed."""
    with asyncio.Runner(loop_factory=lambda: loop):
        loop.run_forever()
