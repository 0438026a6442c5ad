"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger("rl")


class LoopThread:
    """Starts at once.

    Args:
        failed: told what a coroutine raised, so that nobody waits for it for ever.
    """

    def __init__(self, name: str, *, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in it; from any thread."""
        asyncio.run_coroutine_threadsafe(self._guarded(work), self._loop)

    def close(self) -> None:
        """Cancel what runs, and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            logger.exception("the thread %s failed", self._thread.name)
            self._failed(error)
