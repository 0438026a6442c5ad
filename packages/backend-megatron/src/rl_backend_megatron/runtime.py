"""The one object that owns the device, the process groups, random numbers and the CPU context."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from rl_core.contracts.backend import Topology, WorkerContext
from rl_core.errors import ConfigError
from rl_torch.engine.world import World
from torch import Tensor

from rl_backend_megatron.cpu import cpu_devices
from rl_backend_megatron.parallelism import ParallelConfig


class Runtime(World):
    """This rank's place in the data × pipeline × tensor grid.

    Attributes:
        groups: Megatron's process groups.
        tp_rank, tp_size, pp_rank, pp_size, dp_rank, dp_size: coordinates and extents of the grid.
        ep_rank, ep_size: which part of the experts is here; neighbouring data-parallel ranks have the others.
    """

    on_cuda = "nccl"

    def __init__(
        self, context: WorkerContext, parallel: ParallelConfig, *, timeout: timedelta = timedelta(minutes=30)
    ) -> None:
        if context.world_size % parallel.model_ranks:
            raise ConfigError(
                f"{context.world_size} ranks cannot hold copies of a model on tp {parallel.tp} × pp {parallel.pp} "
                f"= {parallel.model_ranks} ranks each"
            )
        if context.device == "cuda":
            # Megatron overlaps communication with computation only if kernels keep the order they are queued in.
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        super().__init__(context, timeout=timeout)
        with self.active():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=parallel.tp,
                pipeline_model_parallel_size=parallel.pp,
                expert_model_parallel_size=parallel.ep,
                distributed_timeout_minutes=max(1, int(timeout.total_seconds() // 60)),
            )
            # Nothing here is random after loading (dropout is 0); the tracker only has to exist.
            model_parallel_cuda_manual_seed(context.seed, inference_rng_tracker=True, force_reset_rng=True)
        self.groups = ProcessGroupCollection.use_mpu_process_groups()
        self.tp_rank, self.tp_size = self.groups.tp.rank(), self.groups.tp.size()
        self.pp_rank, self.pp_size = self.groups.pp.rank(), self.groups.pp.size()
        self.dp_rank, self.dp_size = self.groups.dp.rank(), self.groups.dp.size()
        self.ep_rank, self.ep_size = self.groups.ep.rank(), self.groups.ep.size()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank has the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the output head, and so computes losses."""
        return self.pp_rank == self.pp_size - 1

    @property
    def topology(self) -> Topology:
        """Tensor and pipeline peers share a shard; results are valid on the last stage."""
        return Topology(self.dp_rank, self.dp_size, is_output=self.is_last_stage and self.tp_rank == 0)

    def active(self) -> AbstractContextManager[None]:
        """What every call into Megatron runs in: nothing on CUDA, the CPU stand-ins otherwise."""
        return nullcontext() if self.device.type == "cuda" else cpu_devices()

    def close(self) -> None:
        """Leave all process groups."""
        parallel_state.destroy_model_parallel()
        super().close()


def gather_parts(tensor: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """The tensors of all ranks of ``group``, in order; a collective."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts
