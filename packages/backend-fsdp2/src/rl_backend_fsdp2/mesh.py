"""The process groups of the ranks, and what they agree on through them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from rl_core.contracts.backend import Topology, WorkerContext
from rl_torch.rendezvous import join
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Sizes:
    """Ranks per dimension, slowest first; their product is the world size."""

    replicate: int = 1
    dp: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def world(self) -> int:
        return self.replicate * self.dp * self.cp * self.tp


class Mesh:
    """All ranks in the dimensions ``replicate × shard × tp``, where ``shard`` is dp × cp.

    Parameters are sharded over ``shard``: context-parallel ranks hold different tokens of the same sequences, so
    their gradients add up like those of data-parallel ranks. Joins the process group (nccl on CUDA, gloo on CPU)
    when built; :meth:`close` leaves it.
    """

    def __init__(
        self, context: WorkerContext, sizes: Sizes | None = None, *, timeout: timedelta = timedelta(minutes=30)
    ) -> None:
        self.rank = context.rank
        self.size = context.world_size
        self.sizes = sizes or Sizes(dp=context.world_size)
        if self.sizes.world != self.size:
            raise ValueError(f"{self.sizes} are {self.sizes.world} ranks, but the group has {self.size}")
        self.device = torch.device("cuda", 0) if context.device == "cuda" else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        # gloo as well as nccl: checkpoints are written from host memory.
        join(context, "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo", timeout=timeout)
        shape = (self.sizes.replicate, self.sizes.dp * self.sizes.cp, self.sizes.tp)
        self._ranks: DeviceMesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard", "tp"))
        self.cp_group = self._context_group()
        # Whether all could write a checkpoint is text, which goes through host memory.
        self.saving_group = dist.new_group(backend="gloo", timeout=timeout)

    @property
    def topology(self) -> Topology:
        """Context- and tensor-parallel peers work on the same data; the first of them reports."""
        places = self.sizes
        outer, tp_rank = divmod(self.rank, places.tp)
        dp_rank, cp_rank = divmod(outer, places.cp)
        return Topology(dp_rank=dp_rank, dp_size=places.replicate * places.dp, is_output=cp_rank == 0 and tp_rank == 0)

    @property
    def coordinates(self) -> dict[str, int]:
        """This rank's place in every dimension of the mesh."""
        place = self._ranks.get_coordinate()
        assert place is not None
        return dict(zip(("replicate", "shard", "tp"), place, strict=True))

    @property
    def fsdp(self) -> DeviceMesh:
        """The dimensions that parameters are sharded over, and replicated over before them (HSDP)."""
        return self._ranks["replicate", "shard"] if self.sizes.replicate > 1 else self._ranks["shard"]

    @property
    def tp(self) -> DeviceMesh:
        """The tensor-parallel dimension."""
        return self._ranks["tp"]

    @property
    def cp_rank(self) -> int:
        return (self.rank // self.sizes.tp) % self.sizes.cp

    def _context_group(self) -> dist.ProcessGroup | None:
        """The ranks that share this rank's sequences."""
        cp, tp = self.sizes.cp, self.sizes.tp
        if cp == 1:
            return None
        mine = None
        for first in range(0, self.size, cp * tp):
            for offset in range(tp):
                members = [first + offset + i * tp for i in range(cp)]
                group = dist.new_group(members)  # every rank creates every group, in the same order
                if self.rank in members:
                    mine = group
        return mine

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
