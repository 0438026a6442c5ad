"""One pass over a shard: micro-batches forward and backward, then the optimizer step all ranks agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, TrainResult
from rl_core.contracts.model import AdapterSpec, OptimizerSpec, Role
from rl_core.contracts.profiling import FORWARD_BACKWARD, OPTIMIZER
from rl_torch.gradients import squared_norms
from rl_torch.losses import LossBatch, LossFunction, MetricSums, TokenOutputs, call_loss, load_loss
from rl_torch.microbatch import Layout, MicroBatch, Packing
from rl_torch.optim import learning_rate, set_learning_rate
from rl_torch.policy import check_outputs, compute_outputs, in_batch_order, score_indices
from rl_torch.profiling import Profiler
from rl_torch.routing import Balancing
from rl_torch.shards import BackgroundWrite
from rl_torch.varlen import ATTENTION as VARLEN
from rl_torch.varlen import Segments
from torch import Tensor, nn

from rl_backend_fsdp2.adapters import sum_replicated_gradients, switched_off
from rl_backend_fsdp2.context_parallel import ContextSplit, split_forward
from rl_backend_fsdp2.dtensors import copies, local
from rl_backend_fsdp2.loss_scale import LossScale
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.microbatches import MicroBatcher
from rl_backend_fsdp2.sharding import Wrapped, release

if TYPE_CHECKING:
    from rl_backend_fsdp2.adalora import RankSchedule


@dataclass
class LoadedModel:
    """A role on this rank.

    Attributes:
        adapter: what is trained in place of the model's own weights.
        base_only: compute with the adapter off (``model`` is then another role's).
        packing: how its sequences are laid out; None for what the config says.
        balancing: of its routers, where they are trained.
        steps: optimizer steps taken.
        loss_scale: for float16.
        ranks: for AdaLoRA.
        saving: checkpoint writes that are still going on.
        parameters: all of the model's, trained or not, as sharded.
    """

    role: Role
    model: Wrapped
    adapter: AdapterSpec | None = None
    base_only: bool = False
    packing: Packing | Layout | None = None
    balancing: Balancing | None = None
    optimizer: torch.optim.Optimizer | None = None
    spec: OptimizerSpec | None = None
    steps: int = 0
    loss_scale: LossScale | None = None
    ranks: RankSchedule | None = None
    saving: list[BackgroundWrite] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once: walking through a small model's modules takes as long as the update of its weights.
        self.parameters = list(self.model.parameters())


@torch.no_grad()
def forward_shard(
    loaded: LoadedModel,
    shard: SequenceBatch,
    outputs: tuple[str, ...],
    *,
    temperature: float,
    batcher: MicroBatcher,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """``outputs`` of every sequence in shard order: float32 [T], or [B] for ``scores``."""
    result = {n: np.zeros(len(shard) if n == "scores" else len(shard.tokens), np.float32) for n in outputs}
    for part, micro in batcher.micro_batches(shard, mesh, packing=loaded.packing):
        computed = _outputs(loaded, micro, outputs, temperature=temperature, mesh=mesh)
        if micro.is_filler:
            continue
        tokens = shard.token_index(part)
        for name in outputs:
            result[name][part if name == "scores" else tokens] = getattr(computed, name).cpu().numpy()
    release(loaded.model)
    return result


def train_shard(
    loaded: LoadedModel,
    shard: SequenceBatch,
    loss: LossSpec,
    scale: Scale,
    *,
    batcher: MicroBatcher,
    mesh: Mesh,
    profiler: Profiler,
) -> TrainResult:
    """Forward, backward and one optimizer step; none, on any rank, if something is not finite.

    Raises:
        ValueError: the role has no optimizer.
    """
    optimizer, spec = loaded.optimizer, loaded.spec
    if optimizer is None or spec is None:
        raise ValueError(f"role {loaded.role.name!r} was loaded without an optimizer, so it cannot be trained")
    while True:
        with profiler.section(FORWARD_BACKWARD):
            metrics = _accumulate(loaded, shard, loss, scale, batcher=batcher, mesh=mesh, backward=True)
            norm, losses_finite = _finish_gradients(loaded, metrics["loss"], mesh)
        finite = losses_finite and math.isfinite(norm)
        too_large = losses_finite and not finite and loaded.loss_scale is not None and loaded.loss_scale.overflowed()
        if not too_large:
            break
        optimizer.zero_grad(set_to_none=True)
    rate = learning_rate(spec, loaded.steps)
    with profiler.section(OPTIMIZER):
        if finite:
            _step(loaded, optimizer, rate, shrink=_clipping(norm, spec.max_grad_norm))
        optimizer.zero_grad(set_to_none=True)
    return TrainResult(
        partial=metrics, shared={"grad_norm": norm, "learning_rate": rate, **_state(loaded)}, finite=finite
    )


def _clipping(norm: float, limit: float | None) -> float:
    """The factor that brings a gradient down to ``limit``."""
    return limit / (norm + 1e-6) if limit is not None and norm > limit else 1.0


@torch.no_grad()
def _step(loaded: LoadedModel, optimizer: torch.optim.Optimizer, rate: float, *, shrink: float) -> None:
    if shrink != 1.0:
        torch._foreach_mul_(_gradients(loaded), shrink)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    loaded.steps += 1
    if loaded.loss_scale is not None:
        loaded.loss_scale.stepped()
    if loaded.ranks is not None:
        loaded.ranks.after_step(loaded.steps)


def _state(loaded: LoadedModel) -> dict[str, float]:
    found = {}
    if loaded.loss_scale is not None:
        found["loss_scale"] = loaded.loss_scale.value
    if loaded.ranks is not None:
        found["adapter_rank"] = loaded.ranks.kept()
    return found


@torch.no_grad()
def evaluate_shard(
    loaded: LoadedModel, shard: SequenceBatch, loss: LossSpec, scale: Scale, *, batcher: MicroBatcher, mesh: Mesh
) -> TrainResult:
    """The same loss and metrics without a backward pass."""
    metrics = _accumulate(loaded, shard, loss, scale, batcher=batcher, mesh=mesh, backward=False)
    release(loaded.model)
    return TrainResult(partial=metrics, shared={}, finite=math.isfinite(metrics["loss"]))


def _accumulate(
    loaded: LoadedModel,
    shard: SequenceBatch,
    loss: LossSpec,
    scale: Scale,
    *,
    batcher: MicroBatcher,
    mesh: Mesh,
    backward: bool,
) -> dict[str, float]:
    """Partial metrics of this rank, ``loss`` among them; gradients are left in the parameters.

    Gradients are reduced after every micro-batch: keeping them whole until the last one would hold
    an unsharded gradient of the whole model on each rank.
    """
    function = load_loss(loss.function)
    sums = MetricSums()
    sums.add({"loss": 0.0})
    factor = loaded.loss_scale.value if loaded.loss_scale is not None else 1.0
    for _, micro in batcher.micro_batches(shard, mesh, packing=loaded.packing):
        outputs = _outputs(
            loaded, micro, loss.outputs, temperature=loss.temperature, mesh=mesh, balancing=loaded.balancing
        )
        value, metrics = _loss(function, loss, outputs, micro, scale)
        if outputs.router_loss is not None and loaded.balancing is not None:
            share = 0.0 if micro.is_filler else len(micro.batch) / scale.sequences
            value = value + share * loaded.balancing.coefficient * outputs.router_loss
            metrics = {**metrics, "router_aux_loss": share * outputs.router_loss.detach()}
        if backward:
            (value * factor if factor != 1.0 else value).backward()
        sums.add({**metrics, "loss": value})
    if backward and loaded.ranks is not None:
        # Once per step and not once per rank: gradients are added up.
        (loaded.ranks.penalty() * (factor / mesh.size)).backward()
    return sums.result()


def _outputs(
    loaded: LoadedModel,
    micro: MicroBatch,
    outputs: tuple[str, ...],
    *,
    temperature: float,
    mesh: Mesh,
    balancing: Balancing | None = None,
) -> TokenOutputs:
    """``outputs`` of a micro-batch, over all context-parallel ranks."""
    with switched_off(loaded.model, loaded.base_only):
        if mesh.cp_group is None:
            extra: dict[str, Any] = {**micro.arguments}
            if _attention(loaded) == VARLEN:
                extra["segments"] = Segments.of(micro)
            if balancing is not None:
                extra["balancing"] = balancing
            return compute_outputs(loaded.model, micro, outputs, temperature=temperature, **extra)
        check_outputs(loaded.model, outputs)
        results = split_forward(
            loaded.model,
            micro,
            ContextSplit.of(micro, mesh.cp_group),
            outputs=outputs,
            temperature=temperature,
            scores=score_indices(loaded.model, micro),
        )
        return in_batch_order(results, micro)


def _attention(loaded: LoadedModel) -> str:
    return loaded.model.model.config._attn_implementation


def _loss(
    function: LossFunction, loss: LossSpec, outputs: TokenOutputs, micro: MicroBatch, scale: Scale
) -> tuple[Tensor, dict[str, Tensor | float]]:
    computed = [getattr(outputs, name) for name in loss.outputs]
    if micro.is_filler:
        # Zero, but connected, so that the backward pass runs the same collectives as elsewhere.
        return torch.stack([x.sum() for x in computed]).sum() * 0.0, {}
    value, metrics = call_loss(function, loss, outputs, LossBatch(micro.batch, device=micro.input_ids.device), scale)
    if torch.is_grad_enabled() and not value.requires_grad:
        # A batch may leave nothing to learn from (everything masked out): then it adds nothing.
        value = value + torch.stack([x.sum() for x in computed]).nan_to_num().sum() * 0.0
    return value, dict(metrics)


@torch.no_grad()
def _finish_gradients(loaded: LoadedModel, loss: float, mesh: Mesh) -> tuple[float, bool]:
    """Bring the gradients to their final values; their norm, and whether every rank's loss is finite.

    Computed on local shards, because a DTensor operation costs more than a small model's update.
    """
    if loaded.ranks is not None:
        sum_replicated_gradients(loaded.model, mesh.sum)
    trained = [p for p in loaded.parameters if p.grad is not None]
    gradients = _gradients(loaded)
    if loaded.loss_scale is not None:
        torch._foreach_mul_(gradients, 1 / loaded.loss_scale.value)
    totals = torch.zeros(2, dtype=torch.float64)
    if gradients:
        squares = squared_norms(gradients)
        # Ranks that hold the same element report a fraction of it each.
        totals[0] = (squares / torch.tensor([copies(p, mesh.size) for p in trained], dtype=torch.float64)).sum()
    totals[1] = 0.0 if math.isfinite(loss) else 1.0
    total, broken = mesh.sum(totals.to(mesh.device)).tolist()
    return math.sqrt(total) if total >= 0 else math.nan, not broken


def _gradients(loaded: LoadedModel) -> list[Tensor]:
    return [local(p.grad) for p in loaded.parameters if p.grad is not None]
