"""Building a role: config, this rank's stage, its weights, adapters and optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_huggingface.foreign import foreign
from rl_torch.models import build_config

from rl_backend_megatron.architecture import Architecture
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.lora import add_adapters
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.optimizer import Trainer
from rl_backend_megatron.outputs import OutputHead
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.source import open_source
from rl_backend_megatron.step import LoadedModel
from rl_backend_megatron.weights import WeightMap, skeleton


def build_role(
    role: Role, model: ModelSpec, optimizer: OptimizerSpec | None, *, config: MegatronConfig, runtime: Runtime
) -> LoadedModel:
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
        _name_padding(hf, model, is_new=source.read("score.weight") is None or model.init is not None)
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
    if role.trainable and optimizer is not None:
        trainer = Trainer(
            stage,
            megatron,
            optimizer,
            runtime,
            distributed=config.distributed_optimizer,
            precision=config.precision,
        )
    head = OutputHead(stage, architecture.vocab, pad=hf.pad_token_id, chunk_tokens=config.logprob_chunk_tokens)
    info = ModelInfo(
        parameters=sum(p.numel() for p in full.parameters()),
        max_length=hf.max_position_embeddings or 0,
        vocab_size=hf.vocab_size,
    )
    return LoadedModel(role, info, stage, head, weights, trainer=trainer, adapters=adapters)


def share_base(role: Role, policy: LoadedModel) -> LoadedModel:
    """``role`` as ``policy``'s model with its adapter off.

    Raises:
        ValueError: the policy has no adapter to switch off.
    """
    if policy.adapters is None:
        raise ValueError(f"role {role.name!r} is the base of {policy.role.name!r}, which has no adapter")
    return replace(policy, role=role, trainer=None, base_of=policy.role.name, saving=None)


def _boundary(model: ModelSpec) -> AbstractContextManager[None]:
    """Around code that reads the model's folder."""
    return foreign(model.path) if model.path is not None else nullcontext()


def _name_padding(config: Any, model: ModelSpec, *, is_new: bool) -> None:
    """Name the tokenizer's padding token in a scalar model's config, without which transformers refuses batches."""
    ids = [model.special_tokens.get(name) for name in ("pad_token_id", "eos_token_id")]
    padding = next((i for i in ids if i is not None), None)
    if padding is not None and (is_new or config.pad_token_id is None):
        config.pad_token_id = padding
