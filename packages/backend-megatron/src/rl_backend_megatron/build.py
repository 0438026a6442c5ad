"""Building a role: config, this rank's stage, its weights, adapters and optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_huggingface.foreign import foreign
from rl_torch.microbatch import Layout, Packing
from rl_torch.models import build_config, name_padding_token, skeleton

from rl_backend_megatron.architecture import Architecture
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.lora import add_adapters
from rl_backend_megatron.microbatches import OneRow
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.modules import has_packed_kernels
from rl_backend_megatron.optimizer import Trainer
from rl_backend_megatron.outputs import OutputHead
from rl_backend_megatron.role_model import MegatronModel
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.source import open_source
from rl_backend_megatron.weights import WeightMap


def build_role(
    role: Role, model: ModelSpec, optimizer: OptimizerSpec | None, *, config: MegatronConfig, runtime: Runtime
) -> MegatronModel:
    """This rank's part of ``role``, with the weights of ``model``."""
    hf = build_config(model)
    with _boundary(model):
        architecture = Architecture.of(hf, config.parallel)
    megatron = architecture.transformer_config(
        config.parallel,
        precision=config.precision,
        on_cpu=runtime.device.type == "cpu",
        activation_checkpointing=config.activation_checkpointing and role.trainable,
    )
    full = skeleton(hf, role.head)
    source = open_source(model, role.head, full)
    shapes = {name: tensor.shape for name, tensor in full.state_dict().items()}
    if role.head == "scalar":
        is_new = source("score.weight") is None or model.init is not None
        name_padding_token(full.config, model, is_new=is_new)
    stage = StageModel(megatron, architecture, runtime, head=role.head, max_length=hf.max_position_embeddings)
    weights = WeightMap(architecture, runtime, role.head, shapes)
    with _boundary(model):
        weights.fill(stage, source)
    stage.requires_grad_(role.trainable)
    adapters = None
    if role.trainable and model.adapter is not None:
        adapters = add_adapters(stage, model.adapter, architecture, runtime, shapes=shapes)
        weights = replace(weights, adapters=adapters)
    trainer = None
    if optimizer is not None:
        trainer = Trainer(
            stage,
            megatron,
            optimizer,
            runtime,
            distributed=config.distributed_optimizer,
            precision=config.precision,
        )
    head = OutputHead(stage, full.config, architecture.vocab, chunk_tokens=config.logprob_chunk_tokens)
    layout = _layout(config, runtime)
    return MegatronModel(full, stage, head, weights, runtime, layout=layout, trainer=trainer, lora=adapters)


def _layout(config: MegatronConfig, runtime: Runtime) -> Packing | Layout:
    """``auto`` packs where attention has a kernel for it."""
    packed = has_packed_kernels(runtime.device) if config.packing == "auto" else config.packing == "packed"
    return OneRow() if packed else "padded"


def _boundary(model: ModelSpec) -> AbstractContextManager[None]:
    """Around code that reads the model's folder."""
    return foreign(model.path) if model.path is not None else nullcontext()
