"""Writing a checkpoint in the background, while training goes on with the tensors that are written."""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from rl_backend_megatron.runtime import Runtime


def write(state: dict[str, Any], directory: Path) -> None:
    """Write ``state`` now; a collective."""
    _use_plain_results_queue()
    dist_checkpointing.save(state, str(directory))


class BackgroundSave:
    """A thread of this rank that writes a copy of ``state``; built and finished on all ranks, as collectives."""

    def __init__(self, state: dict[str, Any], directory: Path) -> None:
        _use_plain_results_queue()
        self._request: AsyncRequest = dist_checkpointing.save(
            copied(state), str(directory), async_sharded_save=True, validate_access_integrity=True
        )
        # On CPU the copies are what is written, so this is quick; it must not run where `cuda` means CUDA again.
        arguments = list(self._request.async_fn_args)
        if self._request.preload_fn is not None:
            arguments[1] = self._request.preload_fn()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        if self._request.async_fn is not None:  # a rank may have nothing to write
            self._written = self._executor.submit(self._request.async_fn, *arguments, **self._request.async_fn_kwargs)

    @property
    def is_running(self) -> bool:
        """Whether this rank still writes."""
        return self._written is not None and not self._written.done()

    def wait(self) -> None:
        """Wait until this rank has written, without making the checkpoint whole; raises what the writing raised."""
        self._executor.shutdown(wait=True)
        if self._written is not None:
            self._written.result()

    def finish(self, runtime: Runtime) -> None:
        """Wait, and write the index of what all ranks wrote; raises on all ranks what the writing raised on any."""
        self.wait()
        runtime.barrier()
        for function in self._request.finalize_fns:
            function()


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` with its tensors copied to host memory."""
    result: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            result[name] = copied(value)
        elif isinstance(value, ShardedTensor | ShardedTensorFactory):
            result[name] = replace(value, data=value.data.detach().to("cpu", copy=True))
        else:
            result[name] = value
    return result


def _use_plain_results_queue() -> None:
    """Spare the library's first save a manager process, which takes about ten seconds to start.

    It is for results that come from another process; here they are put and taken in this one. Every save gets
    its own, so that two roles that are written at once do not take each other's.
    """
    filesystem_async._results_queue = queue.Queue()
