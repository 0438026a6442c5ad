"""LoRA (Hu et al. 2022) on tensor-parallel linear layers: ``W x + alpha/rank · B A x``.

Every Hugging Face layer has a pair of its own, although Megatron fuses query, key and value, and gate and up:
so a pair means the same whatever the layout, and merges back into a Hugging Face tensor.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from rl_core.contracts.model import AdapterSpec
from rl_core.errors import ConfigError
from rl_torch.layer_names import is_named, last_part
from torch import Tensor, nn

from rl_backend_megatron.architecture import Architecture
from rl_backend_megatron.conversion import Entry, Kind, stage_entries
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.runtime import Runtime, gather_parts

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder block, under the last part of their Hugging Face names."""


class LoraPair(nn.Module):
    """``a`` [rank, in] and ``b`` [out, rank] of one Hugging Face layer, split like the layer.

    A layer that is split by rows (``column`` parallel) splits ``b`` and repeats ``a`` on every rank; one that
    is split by columns the other way round. ``a`` is drawn from ``seed`` and the name, so every layout
    starts alike; ``b`` starts at 0.
    """

    def __init__(self, like: Tensor, *, name: str, shape: torch.Size, row: bool, spec: AdapterSpec, tp: Any) -> None:
        super().__init__()
        rows, columns = shape
        draws = torch.Generator().manual_seed(spec.seed + zlib.crc32(name.encode()))
        a = (torch.rand(spec.rank, columns, generator=draws) * 2 - 1) / columns**0.5
        if row:
            a = a.chunk(tp.size(), 1)[tp.rank()]
        b = torch.zeros(rows if row else rows // tp.size(), spec.rank)
        self.a, self.b = (nn.Parameter(t.to(like)) for t in (a.contiguous(), b))
        self.axes = {"a": 1} if row else {"b": 0}
        split = self.a if row else self.b
        set_tensor_model_parallel_attributes(split, True, self.axes["a" if row else "b"], 1)


class LoraLinear(nn.Module):
    """A parallel linear layer of Megatron's with the pairs of the layers fused in it.

    Attributes:
        enabled: without it this is the layer as it was.
    """

    pairs: Mapping[str, LoraPair]
    base: Any  # one of Megatron's parallel layers

    def __init__(
        self, base: nn.Module, pairs: Mapping[str, LoraPair], *, parts: tuple[str, ...], kind: Kind, scale: float
    ) -> None:
        super().__init__()
        self.base = base
        self.pairs = nn.ModuleDict(pairs)  # type: ignore[assignment]
        self.enabled = True
        self._parts, self._kind, self._scale = parts, kind, scale
        self._sequence_parallel = base.sequence_parallel
        self._group = base.tp_group
        for pair in pairs.values():
            # These see only this rank's positions, so their gradients are added up over ranks.
            (pair.b if kind == "row" else pair.a).sequence_parallel = self._sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """[L, B, in] → ([L, B, out], bias), split as the layer splits them."""
        out, bias = self.base(x, *others, **named)
        if not self.enabled:
            return out, bias
        if self._kind == "row":
            (pair,) = self.pairs.values()
            return out + F.linear(self._reduced(F.linear(x, pair.a)), pair.b) * self._scale, bias
        return out + self._fuse(x, out) * self._scale, bias

    def _reduced(self, partial: Tensor) -> Tensor:
        if self._sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(partial, group=self._group)
        return reduce_from_tensor_model_parallel_region(partial, group=self._group)

    def _fuse(self, x: Tensor, out: Tensor) -> Tensor:
        """The pairs' outputs in the fused layer's order: one after the other, or by key/value head."""
        deltas = [self._column(self.pairs[part], x) if part in self.pairs else None for part in self._parts]
        if self._kind == "gate_up":
            half = out.shape[-1] // 2
            return torch.cat([out.new_zeros(*out.shape[:-1], half) if d is None else d for d in deltas], -1)
        query, dim, groups = self._heads
        widths = (query * dim, dim, dim)
        grouped = [
            out.new_zeros(*out.shape[:-1], groups, width) if d is None else d.unflatten(-1, (groups, width))
            for d, width in zip(deltas, widths, strict=True)
        ]
        return torch.cat(grouped, -1).flatten(-2)

    def _column(self, pair: LoraPair, x: Tensor) -> Tensor:
        narrow = F.linear(x, pair.a)
        if self._sequence_parallel:
            narrow = gather_from_sequence_parallel_region(narrow, tensor_parallel_output_grad=True, group=self._group)
        else:
            # Behind `a`, so that the gradient of `a` is complete and equal on all ranks.
            narrow = copy_to_tensor_model_parallel_region(narrow, group=self._group)
        return F.linear(narrow, pair.b)

    def set_heads(self, *, query_per_group: int, dim: int, groups: int) -> None:
        """For ``qkv``: query heads per key/value head, their size, and key/value heads on this rank."""
        self._heads = (query_per_group, dim, groups)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Megatron's description of the tensors for a checkpoint."""
        state = self.base.sharded_state_dict(f"{prefix}base.", sharded_offsets, metadata)
        for name, pair in self.pairs.items():
            state |= make_sharded_tensors_for_checkpoint(
                pair.state_dict(prefix="", keep_vars=True),
                f"{prefix}pairs.{name}.",
                pair.axes,
                sharded_offsets,
                tp_group=self._group,
                dp_cp_group=(metadata or {})["dp_cp_group"],
            )
        return state


@dataclass(frozen=True)
class Adapters:
    """All LoRA layers of a stage.

    Attributes:
        layers: the replaced modules.
        pairs: by the Hugging Face name of the weight they change.
    """

    layers: tuple[LoraLinear, ...]
    pairs: Mapping[str, LoraPair]
    scale: float

    def merge(self, name: str, weight: Tensor, runtime: Runtime) -> Tensor:
        """``weight`` of the Hugging Face tensor ``name`` plus its product; a collective over tensor-parallel ranks."""
        pair = self.pairs.get(name)
        if pair is None:
            return weight
        a, b = (
            _gather(t.detach(), pair.axes[key], runtime) if key in pair.axes else t.detach()
            for key, t in (("a", pair.a), ("b", pair.b))
        )
        return (weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model without its adapters."""
        for layer in self.layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in self.layers:
                layer.enabled = True


def add_adapters(
    stage: StageModel,
    spec: AdapterSpec,
    architecture: Architecture,
    runtime: Runtime,
    *,
    shapes: Mapping[str, torch.Size],
) -> Adapters:
    """Freeze ``stage`` but for a scalar head, and put low-rank pairs next to the linear layers ``spec`` names.

    Raises:
        ConfigError: a kind other than LoRA, or a layer that does not exist.
    """
    if spec.kind != "lora":
        raise ConfigError(f"model.adapter.name: the megatron backend trains lora, not {spec.kind}")
    scalar = stage.head == "scalar"
    _check_targets(spec.target_modules, architecture, scalar=scalar)
    wanted = spec.target_modules or TARGETS
    stage.requires_grad_(False)
    if scalar and runtime.is_last_stage:
        stage.output_layer.requires_grad_(True)
    if stage.pre_process:
        # Recomputing a block keeps its parameters' gradients only if its input has one too.
        stage.embedding.register_forward_hook(_with_gradient)
    layers: list[LoraLinear] = []
    pairs: dict[str, LoraPair] = {}
    for entry in stage_entries(architecture, stage=runtime.pp_rank, stages=runtime.pp_size, scalar=scalar):
        names = {_last(name): name for name in _linear_names(entry) if _is_wanted(name, wanted)}
        if not names:
            continue
        layer = _replace(stage, entry, names, spec, architecture, runtime, shapes)
        layers.append(layer)
        pairs |= {name: layer.pairs[part] for part, name in names.items()}
    return Adapters(tuple(layers), pairs, spec.alpha / spec.rank)


def _check_targets(targets: tuple[str, ...], architecture: Architecture, *, scalar: bool) -> None:
    """Refuse the first of ``targets`` that names no layer."""
    entries = stage_entries(architecture, stage=0, stages=1, scalar=scalar)
    names = [name for entry in entries for name in _linear_names(entry)]
    for target in targets:
        if any(_is_wanted(name, (target,)) for name in names):
            continue
        where, last = "model.adapter.target_modules: ", last_part(target)
        if architecture.experts and last in TARGETS[4:]:
            raise ConfigError(f"{where}experts get no adapters; choose from {', '.join(TARGETS[:4])}")
        raise ConfigError(f"{where}no layer {target!r}; choose from {', '.join(TARGETS)}")


def _linear_names(entry: Entry) -> list[str]:
    """Hugging Face names of the weights in ``entry`` that can have a pair."""
    return [n for n in entry.hf if n.endswith(".weight")] if entry.kind in ("qkv", "gate_up", "row") else []


def _is_wanted(name: str, targets: tuple[str, ...]) -> bool:
    return any(is_named(name.removesuffix(".weight"), target) for target in targets)


def _replace(
    stage: StageModel,
    entry: Entry,
    names: Mapping[str, str],
    spec: AdapterSpec,
    architecture: Architecture,
    runtime: Runtime,
    shapes: Mapping[str, torch.Size],
) -> LoraLinear:
    path, _, attribute = entry.parameter.removesuffix(".weight").rpartition(".")
    owner = stage.get_submodule(path)
    base = getattr(owner, attribute)
    made = {
        part: LoraPair(
            base.weight, name=name, shape=shapes[name], row=entry.kind == "row", spec=spec, tp=runtime.groups.tp
        )
        for part, name in names.items()
    }
    parts = tuple(_last(name) for name in entry.hf)
    layer = LoraLinear(base, made, parts=parts, kind=entry.kind, scale=spec.alpha / spec.rank)
    if entry.kind == "qkv":
        layer.set_heads(
            query_per_group=architecture.heads // architecture.kv_heads,
            dim=architecture.head_dim,
            groups=architecture.kv_heads // runtime.tp_size,
        )
    setattr(owner, attribute, layer)
    return layer


def _with_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(torch.is_grad_enabled())


def _last(name: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    return name.split(".")[-2]


def _gather(tensor: Tensor, axis: int, runtime: Runtime) -> Tensor:
    return torch.cat(gather_parts(tensor, runtime.groups.tp), axis)
