"""The ranks of FSDP2 in their dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from rl_core.contracts.backend import Topology, WorkerContext
from rl_torch.engine.world import World
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


class Mesh(World):
    """All ranks in the dimensions ``replicate × shard × tp``, where ``shard`` is dp × cp.

    Parameters are sharded over ``shard``: context-parallel ranks hold different tokens of the same sequences, so
    their gradients add up like those of data-parallel ranks.
    """

    def __init__(
        self, context: WorkerContext, sizes: Sizes | None = None, *, timeout: timedelta = timedelta(minutes=30)
    ) -> None:
        self.sizes = sizes or Sizes(dp=context.world_size)
        if self.sizes.world != context.world_size:
            raise ValueError(f"{self.sizes} are {self.sizes.world} ranks, but the group has {context.world_size}")
        super().__init__(context, timeout=timeout)
        shape = (self.sizes.replicate, self.sizes.dp * self.sizes.cp, self.sizes.tp)
        self._ranks: DeviceMesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard", "tp"))
        self.cp_group = self._context_group()

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
