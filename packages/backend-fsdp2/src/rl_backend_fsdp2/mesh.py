"""The process group of the ranks, and what they agree on through it."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from rl_core.contracts.backend import WorkerContext
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class Mesh:
    """All ranks in one data-parallel dimension ``dp``.

    Joins the process group (nccl on CUDA, gloo on CPU) when built; :meth:`close` leaves it.
    """

    def __init__(self, context: WorkerContext, *, timeout: timedelta = timedelta(minutes=30)) -> None:
        self.rank = context.rank
        self.size = context.world_size
        self.device = torch.device("cuda", 0) if context.device == "cuda" else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        host = f"[{context.master_address}]" if ":" in context.master_address else context.master_address
        dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            init_method=f"tcp://{host}:{context.master_port}",
            rank=context.rank,
            world_size=context.world_size,
            timeout=timeout,
        )
        self.dp: DeviceMesh = init_device_mesh(self.device.type, (context.world_size,), mesh_dim_names=("dp",))

    def maximum(self, value: int) -> int:
        """The largest ``value`` of all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
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
