"""From a model's description to a role on this rank: read, adapted, split, sharded, with its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_huggingface.foreign import foreign
from rl_torch.hf_folder import check_writable
from rl_torch.kernels.apply import Choice, apply_kernels, choose_kernels
from rl_torch.kernels.contract import Use
from rl_torch.logits import LogitTransform
from rl_torch.microbatch import Packing
from rl_torch.models import build_model, settle
from rl_torch.optim import build_adamw
from rl_torch.policy import check_supported, wrap_model
from rl_torch.routing import balancing_of, check_balancing
from rl_torch.varlen import supports_varlen_attention, use_varlen_attention
from rl_torch.weight_plan import WeightPlan
from transformers import PreTrainedModel

from rl_backend_fsdp2 import adapters, loading
from rl_backend_fsdp2.context_parallel import use_context_parallel_attention
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.model import Fsdp2Model
from rl_backend_fsdp2.sample import small_sample
from rl_backend_fsdp2.sharding import (
    COMPUTE_DTYPE,
    Wrapped,
    compile_layers,
    is_plain,
    recompute_activations,
    shard_model,
)
from rl_backend_fsdp2.tensor_parallel import check_tensor_parallel, split_over_ranks

if TYPE_CHECKING:
    from rl_backend_fsdp2.config import Fsdp2Config


@dataclass(frozen=True)
class Capabilities:
    """Features that a model's architecture supports.

    Attributes:
        kernels: those that compute the same.
        varlen: packed rows are attended to without a dense mask.
        packing: the packing it needs; None for what the config says.
        transform: see :class:`rl_torch.policy.Support`.
    """

    kernels: list[Choice]
    varlen: bool
    packing: Packing | None
    transform: LogitTransform | None


def build_role(
    role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None, *, config: Fsdp2Config, mesh: Mesh
) -> Fsdp2Model:
    """This rank's part of ``role``; see :meth:`rl_torch.engine.engine.Engine.load`."""
    model, plan, capabilities = _open(role, spec, config=config, mesh=mesh)
    if spec.adapter is not None:
        adapters.attach(model, spec.adapter)
    else:
        model.requires_grad_(role.trainable)
    if not is_plain(mesh, config):
        # What is not trained is only ever used after a cast to this.
        _cast_frozen(model, COMPUTE_DTYPE[config.precision])
    if role.trainable:
        check_writable(model, dtype=torch.float32)
        recompute_activations(model, config.activation_checkpointing)
    wrapped = wrap_model(model, role.head, chunk_tokens=config.logprob_chunk_tokens, transform=capabilities.transform)
    kernels = apply_kernels(capabilities.kernels, model)
    kernels.attach(wrapped)
    _split(wrapped, spec, config, mesh, varlen=capabilities.varlen)
    if plan is not None:
        kept_on = torch.device("cpu") if config.cpu_offload else mesh.device
        with foreign(str(spec.path)):
            loading.fill(wrapped, plan, kept_on, compute_device=mesh.device)
    if spec.adapter is not None:
        adapters.initialise(model, spec.adapter)
    made = Fsdp2Model(
        wrapped,
        mesh,
        layout=kernels.layout or capabilities.packing or config.packing,
        adapter=spec.adapter,
        cpu_offload=config.cpu_offload,
        balancing=balancing_of(model.config) if role.trainable and role.head == "lm" else None,
    )
    if optimizer is not None:
        made.optimizer = build_adamw(wrapped.parameters(), optimizer)
        if spec.adapter is not None and spec.adapter.kind == "adalora":
            from rl_backend_fsdp2.adalora import RankSchedule  # imports peft

            made.extra = RankSchedule(model, spec.adapter)
    return made


def _open(
    role: Role, spec: ModelSpec, *, config: Fsdp2Config, mesh: Mesh
) -> tuple[PreTrainedModel, WeightPlan | None, Capabilities]:
    """The model; without storage, and with what to read it from, where each rank reads its own part."""
    sample = None if is_plain(mesh, config) else small_sample(spec, role.head)
    found = None if sample is None else loading.empty_model(spec, role.head)
    if found is None or sample is None:
        model, plan = build_model(spec, dtype=torch.float32, head=role.head), None
        sample = model
    else:
        model, plan = found
        settle(model, spec)
    support = check_supported(sample)
    if role.trainable and role.head == "lm" and balancing_of(model.config) is not None:
        check_balancing(sample)
        if config.parallel.cp > 1:
            raise ConfigError(
                "backend.parallel.cp: the balancing loss that config.json of the model asks for (output_router_logits) "
                "needs whole sequences\n    set backend.parallel.cp: 1, or output_router_logits to false"
            )
    if config.parallel.tp > 1:
        check_tensor_parallel(model.config, config.parallel.tp)
    varlen = _uses_varlen(sample, config, packed=support.packed, cuda=mesh.device.type == "cuda")
    name = type(model).__name__
    if config.packing == "packed" and not (support.packed or varlen):
        raise EnvironmentProblem(
            f"{name} does not keep sequences in one row apart\n    remove backend.packing, or set it to padded"
        )
    capabilities = Capabilities(
        kernels=choose_kernels(config.kernels, sample, _use(role, spec, config, mesh), role=role.name),
        varlen=varlen,
        packing=None if support.packed or varlen else "padded",
        transform=support.transform,
    )
    return model, plan, capabilities


def _use(role: Role, spec: ModelSpec, config: Fsdp2Config, mesh: Mesh) -> Use:
    layers = {
        "model.adapter": spec.adapter is not None,
        "backend.parallel.tp": config.parallel.tp > 1,
        f"backend.activation_checkpointing: {config.activation_checkpointing}": (
            role.trainable and config.activation_checkpointing != "none"
        ),
        "backend.compile": config.compile,
    }
    return Use(
        purpose="training" if role.trainable else "scoring",
        device=mesh.device.type,
        layout_fixed_by=config.layout_fixed_by,
        layers_fixed_by=tuple(name for name, given in layers.items() if given),
    )


def _uses_varlen(sample: PreTrainedModel, config: Fsdp2Config, *, packed: bool, cuda: bool) -> bool:
    """Whether packed rows are attended to without a dense mask: as the config says, or as nothing else is right.

    Args:
        packed: under a dense mask the model keeps the sequences of a row apart.

    Raises:
        EnvironmentProblem: the config asks for it, and the model cannot do it.
    """
    wanted = config.uses_varlen(cuda=cuda)
    needed = not packed and (config.packing == "packed" or (config.packing == "auto" and cuda))
    if config.parallel.cp > 1 or not (wanted or (needed and config.attention == "auto")):
        return False
    if supports_varlen_attention(sample):
        return True
    if config.attention == "varlen":
        raise EnvironmentProblem(
            f"backend.attention: varlen cannot replace the attention of {type(sample).__name__}\n"
            "    remove backend.attention"
        )
    return False


def _split(wrapped: Wrapped, spec: ModelSpec, config: Fsdp2Config, mesh: Mesh, *, varlen: bool) -> None:
    """Over tensor-, context- and data-parallel ranks."""
    if mesh.sizes.tp > 1:
        split_over_ranks(wrapped, mesh.tp, sequence=config.parallel.sequence)
    if mesh.sizes.cp > 1:
        use_context_parallel_attention(wrapped.model)
    if varlen:
        use_varlen_attention(wrapped.model)
    if config.compile:
        compile_layers(wrapped.model)
    shard_model(wrapped, mesh, config, whole=adapters.replicated(wrapped.model, spec.adapter))


def _cast_frozen(model: PreTrainedModel, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
