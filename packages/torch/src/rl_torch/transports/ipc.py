"""The ends of the transport ``ipc``: a rank fills a buffer on its GPU, which the generator there reads in place.

The buffer travels as a handle: of CUDA memory on a GPU, of shared memory on the CPU, which takes the same way and is
what tests use.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing
from rl_core.contracts.backend import WeightBucket
from rl_core.contracts.generator import Generator
from rl_core.contracts.transport import BucketLayout, WeightTransferFailed
from torch import Tensor

from rl_torch.transports.buckets import NamedWeights, exhaust, fill, first_line, plan_buckets
from rl_torch.weights import DeviceBytes


class Sender:
    """See :class:`rl_core.contracts.transport.IpcSender`."""

    def __init__(self, backend: NamedWeights) -> None:
        self._backend = backend
        self._plans: dict[str, tuple[BucketLayout, ...]] = {}
        self._update = -1
        self._named: Iterator[tuple[str, Tensor]] = iter(())
        self._left: Iterator[BucketLayout] = iter(())
        self._buffer: Tensor | None = None

    def plan(self, role: str) -> tuple[BucketLayout, ...]:
        """Gathers all parameters once, to see them."""
        self._plans[role] = plan_buckets(self._backend.named_weights(role))
        return self._plans[role]

    def begin(self, role: str, update: int, device: str) -> bytes:
        """A buffer as large as the largest bucket."""
        plan = self._plans[role]
        self._update, self._named, self._left = update, self._backend.named_weights(role), iter(plan)
        try:
            self._buffer = torch.empty(max((b.nbytes for b in plan), default=0), dtype=torch.uint8, device=device)
            return handle_of(self._buffer)
        except RuntimeError as error:
            raise WeightTransferFailed(f"memory of this process cannot be shared: {first_line(error)}") from error

    def next(self, update: int) -> None:
        """Fill the buffer with the next bucket."""
        layout = next(self._left, None) if update == self._update else None
        if layout is not None and self._buffer is not None:
            fill(self._buffer, layout, self._named)
            if self._buffer.is_cuda:
                torch.cuda.synchronize()

    def finish(self, update: int) -> None:
        """Gather the rest; calls of this update that come later do nothing."""
        if update == self._update:
            exhaust(self._named)
            self.close()

    def close(self) -> None:
        """Drop the buffer."""
        on_gpu = self._buffer is not None and self._buffer.is_cuda
        self._named, self._left, self._buffer = iter(()), iter(()), None
        if on_gpu:
            torch.cuda.ipc_collect()


class Receiver:
    """See :class:`rl_core.contracts.transport.IpcReceiver`."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def receive(
        self, buffer: bytes, next_bucket: Callable[[], None], plan: tuple[BucketLayout, ...], version: int
    ) -> None:
        """The generator asks for the bytes of each bucket when it comes to it, in order."""
        try:
            shared: Tensor = pickle.loads(buffer)
        except (RuntimeError, OSError) as error:
            raise WeightTransferFailed(f"memory of the rank on this GPU cannot be read: {first_line(error)}") from error

        def read(layout: BucketLayout) -> Tensor:
            if shared.is_cuda:
                torch.cuda.synchronize()  # what was read of the last bucket must be read before it is overwritten
            next_bucket()
            return shared[: layout.nbytes]

        buckets = [
            WeightBucket(layout.names, layout.shapes, layout.dtypes, DeviceBytes(read, layout))  # type: ignore[arg-type]
            for layout in plan
        ]
        self._generator.update_weights(buckets, version)
        if shared.is_cuda:
            torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing is kept between updates."""


def handle_of(buffer: Tensor) -> bytes:
    """A pickle that another process of this machine loads as the same memory."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")  # the other passes descriptors to child processes only
    try:
        return bytes(ForkingPickler.dumps(buffer))
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
