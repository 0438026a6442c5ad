"""The process group of a backend's ranks, and what they agree on through it."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

import torch
import torch.distributed as dist
from rl_core.contracts.backend import WorkerContext
from torch import Tensor

from rl_torch.rendezvous import join


class World:
    """All ranks. Joins the process group (nccl on CUDA, gloo on CPU) when built; :meth:`close` leaves it.

    Attributes:
        rank, size: this rank, and how many there are.
        device: where models live.
        host_group: of all ranks, through host memory.
    """

    on_cuda: ClassVar[str] = "cpu:gloo,cuda:nccl"
    """Of the process group; gloo too, because checkpoints are written from host memory."""

    def __init__(self, context: WorkerContext, *, timeout: timedelta = timedelta(minutes=30)) -> None:
        self.rank, self.size = context.rank, context.world_size
        self.device = torch.device("cuda", 0) if context.device == "cuda" else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        join(context, self.on_cuda if self.device.type == "cuda" else "gloo", timeout=timeout)
        self.host_group = dist.new_group(backend="gloo", timeout=timeout)

    def maximum(self, value: int, group: dist.ProcessGroup | None = None) -> int:
        """The largest ``value`` of all ranks, or of a group's."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
        return int(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` added up over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group; a new one may then be joined."""
        dist.destroy_process_group()
