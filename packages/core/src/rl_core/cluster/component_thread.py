"""The thread in which a worker's component is built and called.

Libraries keep threads, devices and modes by thread (OpenMP, CUDA, PyTorch), so a component has one of its own. The
actor's event loop stays free meanwhile, and answers whether the worker lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent import futures
from typing import Any

_NOT_FOR_ASYNCIO = (
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    asyncio.CancelledError,
    futures.CancelledError,
)


class ComponentThread:
    """Runs functions one after the other, in the order in which they come."""

    def __init__(self, name: str) -> None:
        self._executor = futures.ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns or raises."""
        return await asyncio.wrap_future(self._executor.submit(function))


class ExitsAreErrors:
    """In its block what means something to asyncio is an error.

    ``sys.exit()`` would end the actor's event loop; of a call that a component cancels Ray would say no more than that.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, _NOT_FOR_ASYNCIO):
            raise RuntimeError(f"the component raised {type(error).__name__}: {error}") from error
