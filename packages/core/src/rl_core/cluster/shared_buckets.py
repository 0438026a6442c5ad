"""Weight buckets in memory that other processes of the same machine and user can read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rl_core.contracts.backend import WeightBucket

KEPT_BYTES = 2**30
"""Up to here memory is kept from one step to the next: to get as much anew costs several times what filling it does."""


@dataclass(frozen=True)
class Described:
    """Where buckets are, for another process; valid as long as their :class:`SharedBuckets` lives and is not refilled.

    Attributes:
        path: of the memory.
        parts: names, shapes and dtypes of each bucket's tensors.
        sizes: bytes of each bucket, which stand one after the other.
    """

    path: str
    parts: tuple[tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[str, ...]], ...]
    sizes: tuple[int, ...]

    def read(self) -> list[WeightBucket]:
        """The buckets, without a copy; their data cannot be written to."""
        if not sum(self.sizes):
            data = np.zeros(0, np.uint8)
        else:
            with open(self.path, "rb") as file:
                data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        starts = np.cumsum((0, *self.sizes))
        return [
            WeightBucket(*part, data=data[start : start + size])
            for part, start, size in zip(self.parts, starts, self.sizes, strict=False)
        ]


class SharedBuckets:
    """Memory for one set of buckets after the other; it goes back to the system with the object and its last reader.

    Linux only: the memory has no name in a file system, so nothing is left behind by a process that is killed.
    """

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("rl-weights"), "wb", buffering=0)
        self._parts: list[tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[str, ...]]] = []
        self._sizes: list[int] = []

    @staticmethod
    def possible() -> bool:
        """Whether this machine has such memory."""
        return hasattr(os, "memfd_create")

    @property
    def worth_keeping(self) -> bool:
        """Whether the memory is to stay until the next buckets."""
        return sum(self._sizes) <= KEPT_BYTES

    @property
    def described(self) -> Described:
        """For :meth:`Described.read` in other processes."""
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return Described(path, tuple(self._parts), tuple(self._sizes))

    def fill(self, buckets: Iterable[WeightBucket]) -> None:
        """Copy ``buckets`` over those that are there, one at a time. Nobody may be reading any more."""
        self._parts.clear()
        self._sizes.clear()
        self._file.seek(0)
        for bucket in buckets:
            self._add(bucket)
        self._file.truncate()

    def _add(self, bucket: WeightBucket) -> None:
        data = np.ascontiguousarray(bucket.data)
        self._parts.append((bucket.names, bucket.shapes, bucket.dtypes))
        self._sizes.append(len(data))
        while len(data):  # one write takes 2 GB at most
            data = data[self._file.write(data.data) :]
