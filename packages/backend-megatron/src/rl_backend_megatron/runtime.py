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
from rl_torch.rendezvous import join
from rl_torch.seeding import prepare_process
from torch import Tensor

from rl_backend_megatron.cpu import cpu_devices
from rl_backend_megatron.parallelism import ParallelConfig


class Runtime:
    """This rank's place in the data × pipeline × tensor grid.

    Joins the process group (nccl on CUDA, gloo on CPU) and builds Megatron's groups when built;
    :meth:`close` leaves them, after which another one may be built in the same process.

    Attributes:
        device: where models live.
        groups: Megatron's process groups.
        tp_rank, tp_size, pp_rank, pp_size, dp_rank, dp_size: coordinates and extents of the grid.
        ep_rank, ep_size: which part of the experts is here; neighbouring data-parallel ranks have the others.
    """

    def __init__(
        self, context: WorkerContext, parallel: ParallelConfig, *, timeout: timedelta = timedelta(minutes=30)
    ) -> None:
        if context.world_size % parallel.model_ranks:
            raise ConfigError(
                f"{context.world_size} ranks cannot hold copies of a model on tp {parallel.tp} × pp {parallel.pp} "
                f"= {parallel.model_ranks} ranks each"
            )
        self.rank, self.size = context.rank, context.world_size
        self.device = torch.device("cuda", 0) if context.device == "cuda" else torch.device("cpu")
        prepare_process(threads=context.threads, seed=context.seed, rank=context.rank)
        if self.device.type == "cuda":
            # Megatron overlaps communication with computation only if kernels keep the order they are queued in.
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
            torch.cuda.set_device(self.device)
        join(context, "nccl" if self.device.type == "cuda" else "gloo", timeout=timeout)
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

    def topology(self) -> Topology:
        """Tensor and pipeline peers share a shard; results are valid on the last stage."""
        return Topology(self.dp_rank, self.dp_size, is_output=self.is_last_stage and self.tp_rank == 0)

    def active(self) -> AbstractContextManager[None]:
        """What every call into Megatron runs in: nothing on CUDA, the CPU stand-ins otherwise."""
        return nullcontext() if self.device.type == "cuda" else cpu_devices()

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` added up over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def most(self, count: int) -> int:
        """The largest ``count`` of the ranks that exchange tokens for each other's experts."""
        if self.ep_size == 1:
            return count
        found = torch.tensor(count, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.groups.ep)
        return int(found)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave all process groups."""
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def gather_parts(tensor: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """The tensors of all ranks of ``group``, in order; a collective."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts
