"""One pass over a shard: outputs, or a loss and the optimizer step that all ranks agree on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, TrainResult
from rl_core.contracts.profiling import FORWARD_BACKWARD, OPTIMIZER
from torch import Tensor

from rl_torch.engine.microbatches import MicroBatches
from rl_torch.engine.roles import LoadedRole
from rl_torch.engine.strategy import Work
from rl_torch.losses import LossBatch, LossFunction, MetricSums, TokenOutputs, call_loss, load_loss
from rl_torch.microbatch import MicroBatch
from rl_torch.optim import clipping, learning_rate
from rl_torch.policy import check_outputs
from rl_torch.profiling import Profiler


@torch.no_grad()
def forward(
    loaded: LoadedRole, shard: SequenceBatch, micros: MicroBatches, outputs: tuple[str, ...], temperature: float
) -> dict[str, np.ndarray]:
    """``outputs`` of every sequence in shard order: float32 [T], or [B] for ``scores``; 0 where this rank sees none."""
    check_outputs(loaded.role.head, outputs)
    result = {n: np.zeros(len(shard) if n == "scores" else len(shard.tokens), np.float32) for n in outputs}

    def objective(micro: MicroBatch, computed: TokenOutputs) -> tuple[Tensor, TokenOutputs]:
        return micro.input_ids.new_zeros(()), computed

    # The model first: it ends when the last micro-batch is done, a filler or not.
    for computed, part in zip(
        loaded.model.run(micros, Work(outputs, temperature, objective)), micros.parts, strict=False
    ):
        if not len(part):
            continue
        tokens = shard.token_index(part)
        for name in outputs:
            result[name][part if name == "scores" else tokens] = getattr(computed, name).cpu().numpy()
    return result


def train(loaded: LoadedRole, micros: MicroBatches, loss: LossSpec, scale: Scale, *, profiler: Profiler) -> TrainResult:
    """Forward, backward and one optimizer step; none, on any rank, if something is not finite.

    A gradient that overflows float16 is computed again with a smaller loss scale.

    Raises:
        ValueError: the role has no optimizer.
    """
    model, spec = loaded.model, loaded.optimizer
    if spec is None:
        raise ValueError(f"role {loaded.role.name!r} was loaded without an optimizer, so it cannot be trained")
    while True:
        with profiler.section(FORWARD_BACKWARD):
            model.clear_gradients()
            metrics = _losses(loaded, micros, loss, scale, backward=True)
            unscale = 1 / loaded.loss_scale.value if loaded.loss_scale is not None else 1.0
            norm, losses_finite = model.finish_gradients(metrics["loss"], unscale=unscale)
        finite = losses_finite and math.isfinite(norm)
        if finite or not losses_finite or loaded.loss_scale is None or not loaded.loss_scale.overflowed():
            break
    rate = learning_rate(spec, loaded.steps)
    with profiler.section(OPTIMIZER):
        if finite:
            loaded.steps += 1
            model.update(rate=rate, shrink=clipping(norm, spec.max_grad_norm), step=loaded.steps)
            if loaded.loss_scale is not None:
                loaded.loss_scale.stepped()
        model.clear_gradients()
    shared = {"grad_norm": norm, "learning_rate": rate}
    if loaded.loss_scale is not None:
        shared["loss_scale"] = loaded.loss_scale.value
    return TrainResult(partial=metrics, shared=shared | model.metrics(), finite=finite)


@torch.no_grad()
def evaluate(loaded: LoadedRole, micros: MicroBatches, loss: LossSpec, scale: Scale) -> TrainResult:
    """The same loss and metrics without a backward pass."""
    metrics = _losses(loaded, micros, loss, scale, backward=False)
    return TrainResult(partial=metrics, shared={}, finite=math.isfinite(metrics["loss"]))


def _losses(
    loaded: LoadedRole, micros: MicroBatches, loss: LossSpec, scale: Scale, *, backward: bool
) -> dict[str, float]:
    """Partial metrics of this rank, ``loss`` among them (0 where it sees no outputs)."""
    check_outputs(loaded.role.head, loss.outputs)
    function, balancing = load_loss(loss.function), loaded.model.balancing
    factor = loaded.loss_scale.value if loaded.loss_scale is not None else 1.0

    def objective(micro: MicroBatch, outputs: TokenOutputs) -> tuple[Tensor, dict[str, Any]]:
        value, metrics = _loss(function, loss, outputs, micro, scale)
        if outputs.router_loss is not None and balancing is not None:
            share = 0.0 if micro.is_filler else len(micro.batch) / scale.sequences
            value = value + share * balancing.coefficient * outputs.router_loss
            metrics = {**metrics, "router_aux_loss": share * outputs.router_loss.detach()}
        return value * factor if factor != 1.0 else value, {**metrics, "loss": value.detach()}

    outputs = loss.outputs if balancing is None else (*loss.outputs, "router_loss")
    work = Work(outputs, loss.temperature, objective, backward=backward, loss_scale=factor)
    sums = MetricSums()
    sums.add({"loss": 0.0})
    for metrics in loaded.model.run(micros, work):
        sums.add(metrics)
    return sums.result()


def _loss(
    function: LossFunction, loss: LossSpec, outputs: TokenOutputs, micro: MicroBatch, scale: Scale
) -> tuple[Tensor, dict[str, Any]]:
    computed = [getattr(outputs, name) for name in loss.outputs]
    if micro.is_filler:
        # Zero, but connected, so that the backward pass runs the same collectives as elsewhere.
        return torch.stack([x.sum() for x in computed]).sum() * 0.0, {}
    value, metrics = call_loss(function, loss, outputs, LossBatch(micro.batch, device=micro.input_ids.device), scale)
    if torch.is_grad_enabled() and not value.requires_grad:
        # A batch may leave nothing to learn from (everything masked out): then it adds nothing.
        value = value + torch.stack([x.sum() for x in computed]).nan_to_num().sum() * 0.0
    return value, dict(metrics)
