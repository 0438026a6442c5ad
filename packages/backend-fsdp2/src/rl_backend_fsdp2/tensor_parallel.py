"""Tensor parallelism (Shoeybi et al. 2019) and sequence parallelism (Korthikanti et al. 2022) as DTensor plans.

A layer's first matrices are split by columns (each rank gets some heads, some of the feed-forward width), its last
ones by rows, so that activations are exchanged once per half layer. Embeddings are split by vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_torch.policy import PolicyModel, ScalarModel
from rl_torch.vocab_parallel import VocabShard
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

FAMILIES = ("llama", "qwen2", "qwen3")
"""Model types whose layers these plans fit."""

_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")


def check_tensor_parallel(config: Any, size: int) -> None:
    """Refuse a model that cannot be split over ``size`` ranks.

    Args:
        config: a transformers config.

    Raises:
        EnvironmentProblem: the architecture has no plan.
        ConfigError: its heads cannot be divided.
    """
    if config.model_type not in FAMILIES:
        raise EnvironmentProblem(
            f"tensor parallelism has no plan for {config.model_type!r} models; it has for {', '.join(FAMILIES)}\n"
            "    set backend.parallel.tp: 1"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, name)
        if count % size:
            raise ConfigError(
                f"backend.parallel.tp: the model's {name} {count} cannot be divided over {size} ranks\n"
                f"    choose a tp that divides {count}"
            )


def split_over_ranks(model: PolicyModel | ScalarModel, mesh: DeviceMesh, *, sequence: bool) -> None:
    """Split ``model``'s matrices over ``mesh`` in place.

    Args:
        mesh: one dimension.
        sequence: between the matrices, activations are split over tokens; rows must then be a multiple of the
            mesh's size wide.
    """
    body: Any = model.model.base_model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tied = _tied_embeddings(model.model)
    for index, layer in enumerate(body.layers):
        parallelize_module(layer, mesh, _layer_plan(layer, sequence=sequence, first=index == 0))
    if sequence:
        gather = PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate())
        parallelize_module(body, mesh, {"norm": SequenceParallel()})
        parallelize_module(body, mesh, {"norm": gather})
    parallelize_module(
        body, mesh, {"embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())}
    )
    if isinstance(model, PolicyModel):
        _split_output_embedding(model, mesh, tied=tied)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)  # the plans make new parameters, which all want gradients


def _layer_plan(layer: nn.Module, *, sequence: bool, first: bool) -> dict[str, ParallelStyle]:
    between = Shard(1) if sequence else Replicate()
    plan: dict[str, ParallelStyle] = {
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": between}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
        ),
        "mlp": PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),)),
    }
    for path in _COLUMNS:
        plan |= _columns(layer, path)
    for path in _ROWS:
        plan |= _rows(layer, path, between)
    if hasattr(layer.self_attn, "q_norm"):
        # One vector for all heads, of which a rank has some: its gradient is summed over ranks.
        plan |= {f"self_attn.{name}": SequenceParallel(sequence_dim=2, use_local_output=True) for name in _QK_NORMS}
    if sequence:
        plan |= {name: SequenceParallel(use_local_output=True) for name in _LAYER_NORMS}
        if first:
            plan[""] = PrepareModuleInput(
                input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),), use_local_output=True
            )
    return plan


_QK_NORMS = ("q_norm", "k_norm")
_LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")


def _columns(layer: nn.Module, path: str) -> dict[str, ParallelStyle]:
    """A matrix whose outputs are divided; of an adapter on it, A is divided by rank and B like the matrix."""
    if not _has_adapter(layer, path):
        return {path: ColwiseParallel()}
    return {
        f"{path}.base_layer": ColwiseParallel(),
        f"{path}.lora_A.default": ColwiseParallel(output_layouts=Replicate()),
        f"{path}.lora_B.default": ColwiseParallel(),
    }


def _rows(layer: nn.Module, path: str, out: Any) -> dict[str, ParallelStyle]:
    """A matrix whose inputs are divided; of an adapter on it, A is divided like the matrix and B by rank."""
    if not _has_adapter(layer, path):
        return {path: RowwiseParallel(output_layouts=out)}
    return {
        f"{path}.base_layer": RowwiseParallel(output_layouts=out),
        f"{path}.lora_A.default": RowwiseParallel(output_layouts=Shard(-1)),
        f"{path}.lora_B.default": RowwiseParallel(output_layouts=out),
    }


def _has_adapter(layer: nn.Module, path: str) -> bool:
    return hasattr(layer.get_submodule(path), "base_layer")


def _tied_embeddings(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _split_output_embedding(model: PolicyModel, mesh: DeviceMesh, *, tied: bool) -> None:
    """Give each rank the logits of its part of the vocabulary; :mod:`rl_torch.vocab_parallel` joins them."""
    output = model.model.get_output_embeddings()
    if tied:
        output.weight = model.model.get_input_embeddings().weight
    else:
        parallelize_module(output, mesh, ColwiseParallel(output_layouts=Shard(-1)))
    model.vocab_shard = VocabShard(mesh.get_group(), vocab_start(output.weight), output.weight.shape[0])


def vocab_start(weight: torch.Tensor) -> int:
    """Index of the first row of a DTensor [V, H] that is split by rows over one mesh dimension."""
    if not isinstance(weight, DTensor):
        return 0
    rows, size = weight.shape[0], weight.device_mesh.size()
    return min(rows, -(-rows // size) * weight.device_mesh.get_local_rank())
