"""Hugging Face ⇄ Megatron: names, and how tensors are fused and split over tensor-parallel ranks.

Everything here works on tensors in hand; reading folders and communicating is done elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl_backend_megatron.architecture import Architecture

Kind = Literal["replicated", "column", "row", "vocab", "qkv", "gate_up", "experts"]


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    Attributes:
        parameter: its name in the stage, where layers count from 0.
        hf: their names; three for ``qkv``, two for ``gate_up``.
        kind: ``column`` is split by rows and ``row`` by columns, as the layers' outputs and inputs are;
            ``vocab`` is ``column`` with padding; ``qkv`` interleaves the heads of a group; ``gate_up``
            has a piece of both on every rank; ``experts`` stacks the parameters of all experts, which are spread
            over expert-parallel ranks: ``parameter`` then has ``{}`` in the place of an expert's number.
    """

    parameter: str
    hf: tuple[str, ...]
    kind: Kind


def stage_entries(architecture: Architecture, *, stage: int, stages: int, scalar: bool) -> Iterator[Entry]:
    """The parameters of pipeline stage ``stage``, in the order they are streamed.

    A tied output embedding belongs to the first stage; the last one's copy is not an entry.
    """
    per_stage = architecture.layers // stages
    if stage == 0:
        yield Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab")
    for local in range(per_stage):
        yield from _layer(architecture, local, stage * per_stage + local)
    if stage == stages - 1:
        yield Entry("decoder.final_layernorm.weight", ("model.norm.weight",), "replicated")
        if scalar:
            yield Entry("output_layer.weight", ("score.weight",), "replicated")
        elif not architecture.tied:
            yield Entry("output_layer.weight", ("lm_head.weight",), "vocab")


def tied_copy(architecture: Architecture, *, stage: int, stages: int, scalar: bool) -> Entry | None:
    """The copy of the embedding that the last of several stages projects with, if there is one."""
    if architecture.tied and not scalar and stage > 0 and stage == stages - 1:
        return Entry("output_layer.weight", ("model.embed_tokens.weight",), "vocab")
    return None


def _layer(architecture: Architecture, local: int, index: int) -> Iterator[Entry]:
    here, there = f"decoder.layers.{local}.", f"model.layers.{index}."
    yield Entry(f"{here}input_layernorm.weight", (f"{there}input_layernorm.weight",), "replicated")
    for part in ("weight", "bias") if architecture.qkv_bias else ("weight",):
        names = tuple(f"{there}self_attn.{x}_proj.{part}" for x in "qkv")
        yield Entry(f"{here}self_attention.linear_qkv.{part}", names, "qkv")
    if architecture.qk_norm:
        for x in "qk":
            name = f"{there}self_attn.{x}_norm.weight"
            yield Entry(f"{here}self_attention.{x}_layernorm.weight", (name,), "replicated")
    yield Entry(f"{here}self_attention.linear_proj.weight", (f"{there}self_attn.o_proj.weight",), "row")
    yield Entry(f"{here}pre_mlp_layernorm.weight", (f"{there}post_attention_layernorm.weight",), "replicated")
    if architecture.experts:
        yield Entry(f"{here}mlp.router.weight", (f"{there}mlp.gate.weight",), "replicated")
        for part, name in (("linear_fc1", "gate_up_proj"), ("linear_fc2", "down_proj")):
            expert = f"{here}mlp.experts.local_experts.{{}}.{part}.weight"
            yield Entry(expert, (f"{there}mlp.experts.{name}",), "experts")
        return
    names = tuple(f"{there}mlp.{x}_proj.weight" for x in ("gate", "up"))
    yield Entry(f"{here}mlp.linear_fc1.weight", names, "gate_up")
    yield Entry(f"{here}mlp.linear_fc2.weight", (f"{there}mlp.down_proj.weight",), "row")


def to_shard(kind: Kind, tensors: Sequence[Tensor], architecture: Architecture, *, rank: int, size: int) -> Tensor:
    """This tensor-parallel rank's part of the Megatron parameter made of ``tensors``."""
    if kind == "replicated":
        return tensors[0]
    if kind == "row":
        return tensors[0].chunk(size, 1)[rank]
    if kind == "gate_up":
        return torch.cat([t.chunk(size)[rank] for t in tensors])
    if kind == "qkv":
        return _fuse_qkv(tensors, architecture).chunk(size)[rank]
    full = tensors[0]
    if kind == "vocab":
        padding = full.new_zeros(architecture.padded_vocab - full.shape[0], full.shape[1])
        full = torch.cat([full, padding])
    return full.chunk(size)[rank]


def from_shards(kind: Kind, shards: Sequence[Tensor], architecture: Architecture) -> tuple[Tensor, ...]:
    """Undo :func:`to_shard`: the Hugging Face tensors, from the parts of all tensor-parallel ranks in order."""
    if kind == "replicated":
        return (shards[0],)
    if kind == "row":
        return (torch.cat(list(shards), 1),)
    if kind == "gate_up":
        halves = [shard.chunk(2) for shard in shards]
        return tuple(torch.cat([pair[i] for pair in halves]) for i in range(2))
    full = torch.cat(list(shards))
    if kind == "qkv":
        return _split_qkv(full, architecture)
    return (full[: architecture.vocab],) if kind == "vocab" else (full,)


def _fuse_qkv(tensors: Sequence[Tensor], architecture: Architecture) -> Tensor:
    """Per key/value head: its query heads, then the key head, then the value head."""
    groups, tail = architecture.kv_heads, tensors[0].shape[1:]
    return torch.cat([t.reshape(groups, -1, *tail) for t in tensors], 1).reshape(-1, *tail)


def _split_qkv(full: Tensor, architecture: Architecture) -> tuple[Tensor, ...]:
    groups, dim, tail = architecture.kv_heads, architecture.head_dim, full.shape[1:]
    grouped = full.reshape(groups, -1, *tail)
    parts = grouped.split([grouped.shape[1] - 2 * dim, dim, dim], 1)
    return tuple(t.reshape(-1, *tail) for t in parts)
