"""Filling a stage with weights, and streaming them out again under their Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from rl_core.contracts.model import Head
from torch import Tensor

from rl_backend_megatron.architecture import Architecture
from rl_backend_megatron.conversion import Entry, from_shards, stage_entries, tied_copy, to_shard
from rl_backend_megatron.lora import Adapters
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.runtime import Runtime, gather_parts
from rl_backend_megatron.source import WeightSource, read_all


@dataclass(frozen=True)
class WeightMap:
    """How one role's parameters correspond to Hugging Face tensors.

    Attributes:
        shapes: of every Hugging Face tensor.
        adapters: the role's LoRA matrices, which are added to what streams out; None without.
    """

    architecture: Architecture
    runtime: Runtime
    head: Head
    shapes: Mapping[str, torch.Size]
    adapters: Adapters | None = None

    @torch.no_grad()
    def fill(self, stage: StageModel, source: WeightSource) -> None:
        """Copy this rank's part of every tensor of ``source``, one parameter at a time.

        Raises:
            EnvironmentProblem: see :func:`rl_backend_megatron.source.read_all`.
        """
        parameters = _named(stage)
        runtime = self.runtime
        for entry in self._entries(runtime.pp_rank, copies=True):
            tensors = read_all(source, entry.hf, self.shapes)
            if entry.kind == "experts":
                own = tensors[0].chunk(runtime.ep_size)[runtime.ep_rank]
                for number, expert in enumerate(own):
                    parameters[entry.parameter.format(number)].copy_(expert)
                continue
            shard = to_shard(entry.kind, tensors, self.architecture, rank=runtime.tp_rank, size=runtime.tp_size)
            parameters[entry.parameter].copy_(shard)

    @torch.no_grad()
    def stream(self, stage: StageModel, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        """``(name, full tensor)`` on rank 0, nothing elsewhere; every rank must iterate to the end.

        Data-parallel copies take no part, but for those with the first copy's other experts. One parameter is
        gathered at a time over tensor- or expert-parallel ranks, and sent on to rank 0 by the other pipeline stages.

        Args:
            merged: whether LoRA's products are added.
        """
        runtime, parameters = self.runtime, _named(stage)
        if runtime.dp_rank != 0:
            if runtime.dp_rank < runtime.ep_size:
                for entry in self._entries(runtime.pp_rank, copies=False):
                    if entry.kind == "experts":
                        self._gather_experts(entry, parameters)
            return
        for pp_rank in range(runtime.pp_size):
            for entry in self._entries(pp_rank, copies=False):
                if pp_rank == runtime.pp_rank:
                    if entry.kind == "experts":
                        tensors: tuple[Tensor, ...] = (self._gather_experts(entry, parameters),)
                    else:
                        tensors = self._gather(entry, parameters[entry.parameter], merged=merged)
                    yield from self._hand_over(entry, tensors)
                elif runtime.rank == 0:
                    yield from self._receive(entry, pp_rank, next(iter(parameters.values())))

    def _entries(self, pp_rank: int, *, copies: bool) -> Iterator[Entry]:
        where = {"stage": pp_rank, "stages": self.runtime.pp_size, "scalar": self.head == "scalar"}
        yield from stage_entries(self.architecture, **where)
        copy = tied_copy(self.architecture, **where)
        if copies and copy is not None:
            yield copy

    def _gather(self, entry: Entry, parameter: Tensor, *, merged: bool) -> tuple[Tensor, ...]:
        runtime = self.runtime
        shards = [parameter.detach()]
        if runtime.tp_size > 1 and entry.kind != "replicated":
            shards = gather_parts(parameter.detach(), runtime.groups.tp)
        tensors = from_shards(entry.kind, shards, self.architecture)
        if self.adapters is None or not merged:
            return tensors
        return tuple(self.adapters.merge(name, t, runtime) for name, t in zip(entry.hf, tensors, strict=True))

    def _gather_experts(self, entry: Entry, parameters: Mapping[str, Tensor]) -> Tensor:
        """[experts, rows, columns]; a collective over expert-parallel ranks."""
        runtime = self.runtime
        count = self.architecture.experts // runtime.ep_size
        own = torch.stack([parameters[entry.parameter.format(number)] for number in range(count)])
        return torch.cat(gather_parts(own, runtime.groups.ep))

    def _hand_over(self, entry: Entry, tensors: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
        runtime = self.runtime
        if runtime.rank == 0:
            yield from zip(entry.hf, tensors, strict=True)
        elif runtime.tp_rank == 0:
            for tensor in tensors:
                dist.send(tensor.contiguous(), dst=0, group=runtime.groups.pp)

    def _receive(self, entry: Entry, pp_rank: int, like: Tensor) -> Iterator[tuple[str, Tensor]]:
        group = self.runtime.groups.pp
        source = dist.get_global_rank(group, pp_rank)
        for name in entry.hf:
            tensor = torch.empty(self.shapes[name], dtype=like.dtype, device=like.device)
            dist.recv(tensor, src=source, group=group)
            yield name, tensor


def _named(stage: StageModel) -> dict[str, Tensor]:
    """Parameters under the names they have without adapters."""
    return {name.replace(".base.", "."): p for name, p in stage.named_parameters()}
