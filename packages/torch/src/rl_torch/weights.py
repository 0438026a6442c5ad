"""Parameters as flat byte buffers: how weights travel between processes (bf16 included, which numpy lacks)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rl_core.contracts.backend import WeightBucket
from rl_core.contracts.transport import BucketLayout
from torch import Tensor

BUCKET_BYTES = 256 * 2**20
"""Of buckets on a device."""

HOST_BUCKET_BYTES = 24 * 2**20
"""Of buckets in host memory: less than glibc's allocator can be told to keep for the next one."""


def to_buckets(
    named_tensors: Iterable[tuple[str, Tensor]], *, bucket_bytes: int = HOST_BUCKET_BYTES
) -> Iterator[WeightBucket]:
    """Pack tensors into buckets of at most ``bucket_bytes`` (a larger tensor has one to itself).

    Consumes its input lazily, so that a backend may gather one parameter at a time. The bytes are
    copied: later changes of the tensors do not reach a bucket.
    """
    entries: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named_tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if entries and size + nbytes > bucket_bytes:
            yield _bucket(entries)
            entries, size = [], 0
        entries.append((name, tensor.detach().to("cpu").contiguous()))
        size += nbytes
    if entries:
        yield _bucket(entries)


@dataclass(frozen=True)
class DeviceBytes:
    """In the place of a bucket's ``data``: bytes that are shared with another process while the bucket is read.

    Attributes:
        read: waits until the bytes of ``layout`` are there and returns them, uint8 [nbytes] on any device. Called once
            per bucket, in order; the next call overwrites what this one returned.
    """

    read: Callable[[BucketLayout], Tensor]
    layout: BucketLayout


def from_buckets(buckets: Iterable[WeightBucket]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``buckets``, one at a time, owning their memory: on the CPU, or where :class:`DeviceBytes` are."""
    for name, shape, dtype, data in _entries(buckets):
        yield name, _tensor(shape, dtype, data)


def load_buckets_into(model: torch.nn.Module, buckets: Iterable[WeightBucket]) -> None:
    """Copy ``buckets`` into ``model``'s parameters in place, by name, converting dtype and device.

    Of tied parameters any one name is enough. Everything is checked before anything is written.

    Raises:
        ValueError: lists missing names, unexpected names and wrong shapes; the model is unchanged.
    """
    buckets = list(buckets)
    targets = model.state_dict(keep_vars=True)
    _check(targets, buckets)
    with torch.no_grad():
        for name, shape, dtype, data in _entries(buckets):
            target = targets[name].detach()
            if isinstance(data, np.ndarray) and _takes_bytes(target, dtype):
                _bytes(target)[:] = data  # a tensor in between would cost four times as long
            else:
                target.copy_(_tensor(shape, dtype, data))


def _entries(
    buckets: Iterable[WeightBucket],
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, np.ndarray | Tensor]]:
    """Name, shape, dtype and bytes (uint8) of every tensor."""
    for bucket in buckets:
        data: np.ndarray | Tensor | DeviceBytes = bucket.data
        if isinstance(data, DeviceBytes):
            data = data.read(data.layout)
        start = 0
        for name, shape, dtype_name in zip(bucket.names, bucket.shapes, bucket.dtypes, strict=True):
            dtype = getattr(torch, dtype_name)
            stop = start + math.prod(shape) * dtype.itemsize
            yield name, tuple(shape), dtype, data[start:stop]
            start = stop


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, data: np.ndarray | Tensor) -> Tensor:
    # A copy: arrays from Ray are read-only, shared memory is overwritten, and an entry after an odd number of bf16
    # values is not aligned for float32.
    if isinstance(data, Tensor):
        return data.clone().view(dtype).reshape(shape)
    tensor = torch.empty(shape, dtype=dtype)
    _bytes(tensor)[:] = data
    return tensor


def _takes_bytes(target: Tensor, dtype: torch.dtype) -> bool:
    return target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous()


def _bytes(tensor: Tensor) -> np.ndarray:
    """uint8: the memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _check(targets: dict[str, Tensor], buckets: list[WeightBucket]) -> None:
    shapes = {n: tuple(s) for b in buckets for n, s in zip(b.names, b.shapes, strict=True)}
    given = {id(targets[name]) for name in shapes if name in targets}
    missing = [name for name, target in targets.items() if id(target) not in given]
    unexpected = [name for name in shapes if name not in targets]
    wrong = [
        f"{name} is {list(shape)}, the model's is {list(targets[name].shape)}"
        for name, shape in shapes.items()
        if name in targets and tuple(targets[name].shape) != shape
    ]
    findings = [
        f"{label}: {', '.join(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if names
    ]
    if findings:
        raise ValueError("weights do not fit the model; " + "; ".join(findings))


def _bucket(entries: list[tuple[str, Tensor]]) -> WeightBucket:
    return WeightBucket(
        names=tuple(name for name, _ in entries),
        shapes=tuple(tuple(t.shape) for _, t in entries),
        dtypes=tuple(str(t.dtype).removeprefix("torch.") for _, t in entries),
        data=np.concatenate([t.reshape(-1).view(torch.uint8).numpy() for _, t in entries]),
    )
