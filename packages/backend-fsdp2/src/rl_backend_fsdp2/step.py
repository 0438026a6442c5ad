"""One pass over a shard: micro-batches forward and backward, then the optimizer step all ranks agree on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, TrainResult
from rl_core.contracts.model import OptimizerSpec, Role
from rl_torch.losses import LossBatch, LossFunction, MetricSums, TokenOutputs, call_loss, load_loss
from rl_torch.microbatch import MicroBatch, Packing, plan
from rl_torch.optim import learning_rate, set_learning_rate
from rl_torch.policy import compute_outputs
from torch import Tensor

from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.sharding import Wrapped, local, release


@dataclass
class LoadedModel:
    """A role on this rank. ``steps`` counts the optimizer steps taken."""

    role: Role
    model: Wrapped
    optimizer: torch.optim.Optimizer | None = None
    spec: OptimizerSpec | None = None
    steps: int = 0


@dataclass(frozen=True)
class Layout:
    """How shards become micro-batches."""

    max_tokens: int
    packing: Packing

    def micro_batches(self, shard: SequenceBatch, mesh: Mesh) -> Iterator[tuple[np.ndarray, MicroBatch]]:
        """``(sequence indices, micro-batch)``; equally many on every rank, made up with fillers."""
        parts = plan(shard, self.max_tokens, packing=self.packing, device=mesh.device)
        count = mesh.maximum(len(parts))
        whole = len(parts) == 1
        for part in parts:
            batch = shard if whole and _is_everything(part, shard) else shard.select(part)
            yield part, MicroBatch.build(batch, packing=self.packing, device=mesh.device)
        for _ in range(count - len(parts)):
            yield np.zeros(0, np.int64), MicroBatch.filler(mesh.device)


@torch.no_grad()
def forward_shard(
    loaded: LoadedModel,
    shard: SequenceBatch,
    outputs: tuple[str, ...],
    *,
    temperature: float,
    layout: Layout,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """``outputs`` of every sequence in shard order: float32 [T], or [B] for ``scores``."""
    result = {n: np.zeros(len(shard) if n == "scores" else len(shard.tokens), np.float32) for n in outputs}
    for part, micro in layout.micro_batches(shard, mesh):
        computed = compute_outputs(loaded.model, micro, outputs, temperature=temperature)
        if micro.is_filler:
            continue
        tokens = shard.token_index(part)
        for name in outputs:
            result[name][part if name == "scores" else tokens] = getattr(computed, name).cpu().numpy()
    release(loaded.model)
    return result


def train_shard(
    loaded: LoadedModel, shard: SequenceBatch, loss: LossSpec, scale: Scale, *, layout: Layout, mesh: Mesh
) -> TrainResult:
    """Forward, backward and one optimizer step; none, on any rank, if something is not finite.

    Raises:
        ValueError: the role has no optimizer.
    """
    optimizer, spec = loaded.optimizer, loaded.spec
    if optimizer is None or spec is None:
        raise ValueError(f"role {loaded.role.name!r} was loaded without an optimizer, so it cannot be trained")
    metrics = _accumulate(loaded, shard, loss, scale, layout=layout, mesh=mesh, backward=True)
    rate = learning_rate(spec, loaded.steps)
    with torch.no_grad():
        gradients = [local(p.grad) for p in loaded.model.parameters() if p.grad is not None]
        norm, finite = _agree(gradients, metrics["loss"], mesh)
        if finite:
            if spec.max_grad_norm is not None and norm > spec.max_grad_norm:
                torch._foreach_mul_(gradients, spec.max_grad_norm / (norm + 1e-6))
            set_learning_rate(optimizer, rate)
            optimizer.step()
            loaded.steps += 1
    optimizer.zero_grad(set_to_none=True)
    return TrainResult(partial=metrics, shared={"grad_norm": norm, "learning_rate": rate}, finite=finite)


@torch.no_grad()
def evaluate_shard(
    loaded: LoadedModel, shard: SequenceBatch, loss: LossSpec, scale: Scale, *, layout: Layout, mesh: Mesh
) -> TrainResult:
    """The same loss and metrics without a backward pass."""
    metrics = _accumulate(loaded, shard, loss, scale, layout=layout, mesh=mesh, backward=False)
    release(loaded.model)
    return TrainResult(partial=metrics, shared={}, finite=math.isfinite(metrics["loss"]))


def _accumulate(
    loaded: LoadedModel,
    shard: SequenceBatch,
    loss: LossSpec,
    scale: Scale,
    *,
    layout: Layout,
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
    for _, micro in layout.micro_batches(shard, mesh):
        outputs = compute_outputs(loaded.model, micro, loss.outputs, temperature=loss.temperature)
        value, metrics = _loss(function, loss, outputs, micro, scale)
        if backward:
            value.backward()
        sums.add({**metrics, "loss": value})
    return sums.result()


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


def _agree(gradients: list[Tensor], loss: float, mesh: Mesh) -> tuple[float, bool]:
    """Norm of the whole gradient, and whether it and every rank's loss are finite; one collective.

    Computed on local shards, because a DTensor operation costs more than a small model's update.
    """
    squares = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    squares[0] = torch.nn.utils.get_total_norm(gradients).double().square()
    squares[1] = 0.0 if math.isfinite(loss) else 1.0
    total, broken = mesh.sum(squares).tolist()
    return math.sqrt(total) if total >= 0 else math.nan, math.isfinite(total) and not broken


def _is_everything(part: np.ndarray, shard: SequenceBatch) -> bool:
    return len(part) == len(shard) and bool((part == np.arange(len(shard))).all())
