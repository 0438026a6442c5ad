"""Between whole tensors and this rank's part of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def gather(tensor: Tensor) -> Tensor:
    """The full tensor; a collective for sharded ones."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_slice(tensor: Tensor) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


@torch.no_grad()
def write(target: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of ``whole`` into ``target``; no communication."""
    local(target).copy_(whole[own_slice(target)])


def copies(tensor: Tensor, world: int) -> int:
    """How many of ``world`` ranks hold each element of ``tensor``."""
    if not isinstance(tensor, DTensor):
        return world
    parts = math.prod(
        tensor.device_mesh.size(dim) for dim, p in enumerate(tensor.placements) if p.is_shard() or _is_strided(p)
    )
    return world // parts


def is_written_here(tensor: Tensor, coordinates: Mapping[str, int]) -> bool:
    """Whether this rank is the first of those that hold the same part of ``tensor``.

    Args:
        coordinates: this rank's place in the whole mesh, by dimension.
    """
    split: set[str] = set()
    if isinstance(tensor, DTensor):
        names = tensor.device_mesh.mesh_dim_names or ()
        split = {n for n, p in zip(names, tensor.placements, strict=True) if p.is_shard() or _is_strided(p)}
    return all(place == 0 for name, place in coordinates.items() if name not in split)


def _is_strided(placement: object) -> bool:
    return type(placement).__name__ == "_StridedShard"
