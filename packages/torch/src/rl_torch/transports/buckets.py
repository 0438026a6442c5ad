"""Parameters laid out in flat buffers of bounded size, the same way at every update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from rl_core.contracts.transport import BucketLayout
from rl_core.errors import RLError
from torch import Tensor

from rl_torch.weights import BUCKET_BYTES


class NamedWeights(Protocol):
    """A backend that can hand out tensors."""

    def named_weights(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters under their Hugging Face names, on whatever device they are.

        Every rank iterates to the end, because gathering may need all. Names, shapes and dtypes are the same each
        time; on some ranks there may be none at all. A tensor is valid until the next one is asked for.
        """
        ...


def plan_buckets(named: Iterable[tuple[str, Tensor]], *, bucket_bytes: int = BUCKET_BYTES) -> tuple[BucketLayout, ...]:
    """Buckets of at most ``bucket_bytes`` (a larger tensor has one to itself), in the order of ``named``."""
    groups: list[list[tuple[str, tuple[int, ...], str, int]]] = []
    size = 0
    for name, tensor in named:
        nbytes = tensor.numel() * tensor.element_size()
        if not groups or size + nbytes > bucket_bytes:
            groups.append([])
            size = 0
        groups[-1].append((name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), nbytes))
        size += nbytes
    return tuple(_layout(group) for group in groups)


@torch.no_grad()
def fill(buffer: Tensor, layout: BucketLayout, named: Iterator[tuple[str, Tensor]]) -> None:
    """Copy the next tensors of ``named`` into ``buffer`` (uint8 [at least ``layout.nbytes``]).

    Raises:
        RLError: they are not those of ``layout``.
    """
    start = 0
    for expected in zip(layout.names, layout.shapes, layout.dtypes, strict=True):
        name, tensor = next(named, ("nothing", torch.empty(0)))
        found = (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if found != expected:
            raise RLError(f"the backend streams other parameters than before: {found} in the place of {expected}")
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        buffer[start : start + len(flat)].copy_(flat)
        start += len(flat)


def exhaust(named: Iterator[tuple[str, Tensor]]) -> None:
    """Go on to the end, for the ranks that gather together with this one."""
    for _ in named:
        continue


def first_line(error: Exception) -> str:
    """Of its text; PyTorch adds stacks."""
    return str(error).strip().partition("\n")[0]


def _layout(group: list[tuple[str, tuple[int, ...], str, int]]) -> BucketLayout:
    names, shapes, dtypes, sizes = zip(*group, strict=True)
    return BucketLayout(names=names, shapes=shapes, dtypes=dtypes, nbytes=sum(sizes))
