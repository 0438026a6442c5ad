"""The thread in which a worker's component is built and called.

Libraries keep threads, devices and modes by thread (OpenMP, CUDA, PyTorch), so a component has one of its own. The
actor's event loop stays free meanwhile, and answers whether the worker lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


class ComponentThread:
    """Runs functions one after the other, in the order in which they come."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns or raises."""
        return await asyncio.wrap_future(self._executor.submit(function))


@contextmanager
def as_an_error() -> Iterator[None]:
    """Make errors of exceptions that mean something to asyncio: ``sys.exit()`` would end the actor's event loop."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration) as error:
        raise RuntimeError(f"the component raised {type(error).__name__}: {error}") from error
