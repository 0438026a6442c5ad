"""One pass over a shard through Megatron's schedules: micro-batches forward and backward, then one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, TrainResult
from rl_core.contracts.model import ModelInfo, Role
from rl_core.contracts.profiling import FORWARD_BACKWARD, OPTIMIZER
from rl_torch.losses import LossBatch, LossFunction, MetricSums, TokenOutputs, call_loss, load_loss
from rl_torch.microbatch import MicroBatch
from rl_torch.profiling import Profiler
from rl_torch.shards import BackgroundWrite
from torch import Tensor, nn

from rl_backend_megatron.lora import Adapters
from rl_backend_megatron.microbatches import MicroBatcher, packed_sequences
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.optimizer import Trainer
from rl_backend_megatron.outputs import OutputHead
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.weights import WeightMap

Compute = Callable[[MicroBatch, Tensor], tuple[Tensor, Any]]
"""``(micro-batch, hidden states) → (loss, what to hand back)``, on the last pipeline stage."""


@dataclass
class LoadedModel:
    """A role on this rank.

    Attributes:
        info: what was reported when it was loaded.
        stage: this rank's part of the model.
        head: computes outputs from hidden states.
        weights: how it corresponds to Hugging Face tensors.
        trainer: None for frozen roles.
        adapters: None without LoRA.
        base_of: the role whose model this is, with the adapter off.
        saving: a checkpoint that is being written in the background.
    """

    role: Role
    info: ModelInfo
    stage: StageModel
    head: OutputHead
    weights: WeightMap
    trainer: Trainer | None = None
    adapters: Adapters | None = None
    base_of: str | None = None
    saving: BackgroundWrite | None = None

    def as_this_role(self) -> AbstractContextManager[None]:
        """Switches a shared model's adapters off."""
        if self.base_of is not None and self.adapters is not None:
            return self.adapters.disabled()
        return nullcontext()


@torch.no_grad()
def forward_shard(
    loaded: LoadedModel,
    shard: SequenceBatch,
    outputs: tuple[str, ...],
    *,
    temperature: float,
    batcher: MicroBatcher,
    runtime: Runtime,
) -> dict[str, np.ndarray]:
    """``outputs`` of every sequence in shard order: float32 [T], or [B] for ``scores``; 0 before the last stage."""
    loaded.head.check(outputs)
    result = {n: np.zeros(len(shard) if n == "scores" else len(shard.tokens), np.float32) for n in outputs}
    if not len(shard) and runtime.ep_size == 1:
        return result
    parts, micros = zip(*batcher.micro_batches(shard, runtime.device, agree=runtime.most), strict=True)

    def compute(micro: MicroBatch, hidden: Tensor) -> tuple[Tensor, TokenOutputs]:
        computed = loaded.head(micro, hidden, outputs, temperature=temperature)
        return hidden.new_zeros(()), computed

    for part, computed in zip(parts, run_schedule(loaded, micros, compute, forward_only=True), strict=False):
        if not len(part):
            continue
        tokens = shard.token_index(part)
        for name in outputs:
            result[name][part if name == "scores" else tokens] = getattr(computed, name).cpu().numpy()
    return result


def train_shard(
    loaded: LoadedModel,
    shard: SequenceBatch,
    loss: LossSpec,
    scale: Scale,
    *,
    batcher: MicroBatcher,
    runtime: Runtime,
    profiler: Profiler,
) -> TrainResult:
    """Forward, backward and one optimizer step; none, on any rank, if something is not finite.

    Raises:
        ValueError: the role has no optimizer.
    """
    trainer = loaded.trainer
    if trainer is None:
        raise ValueError(f"role {loaded.role.name!r} was loaded without an optimizer, so it cannot be trained")
    with profiler.section(FORWARD_BACKWARD):
        trainer.clear()
        metrics = _losses(loaded, shard, loss, scale, batcher=batcher, runtime=runtime, forward_only=False)
    with profiler.section(OPTIMIZER):
        norm, rate, finite = trainer.step(loss_is_finite=math.isfinite(metrics["loss"]))
    return TrainResult(partial=metrics, shared={"grad_norm": norm, "learning_rate": rate}, finite=finite)


@torch.no_grad()
def evaluate_shard(
    loaded: LoadedModel, shard: SequenceBatch, loss: LossSpec, scale: Scale, *, batcher: MicroBatcher, runtime: Runtime
) -> TrainResult:
    """The same loss and metrics without a backward pass."""
    metrics = _losses(loaded, shard, loss, scale, batcher=batcher, runtime=runtime, forward_only=True)
    return TrainResult(partial=metrics, shared={}, finite=math.isfinite(metrics["loss"]))


def run_schedule(
    loaded: LoadedModel, micros: Sequence[MicroBatch], compute: Compute, *, forward_only: bool
) -> list[Any]:
    """What ``compute`` handed back per micro-batch on the last stage; nothing on the others.

    With a backward pass, gradients are left in the trainer's buffers, added up over data-parallel ranks.
    """
    model: nn.Module = loaded.trainer.ddp if loaded.trainer is not None else loaded.stage

    def step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable[[Tensor], tuple]]:
        micro = next(batches)
        output = model(micro.input_ids, micro.position_ids, None, packed_seq_params=packed_sequences(micro))
        return output, partial(_three, compute, micro)

    schedule = get_forward_backward_func()
    with loaded.as_this_role():
        return schedule(
            forward_step_func=step,
            data_iterator=iter(micros),
            model=[model],
            num_microbatches=len(micros),
            # Shapes travel with the tensors between stages; these two are required but not used.
            seq_length=micros[0].input_ids.shape[1],
            micro_batch_size=micros[0].input_ids.shape[0],
            forward_only=forward_only,
        )


def _three(compute: Compute, micro: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Any]:
    """The form of a loss that the schedule divides by nothing: (loss, token count, payload)."""
    value, payload = compute(micro, hidden)
    return value, torch.ones((), dtype=torch.int, device=value.device), payload


def _losses(
    loaded: LoadedModel,
    shard: SequenceBatch,
    loss: LossSpec,
    scale: Scale,
    *,
    batcher: MicroBatcher,
    runtime: Runtime,
    forward_only: bool,
) -> dict[str, float]:
    """Partial metrics of this data-parallel rank, ``loss`` among them (0 before the last stage)."""
    function = load_loss(loss.function)
    loaded.head.check(loss.outputs)

    def compute(micro: MicroBatch, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        outputs = loaded.head(micro, hidden, loss.outputs, temperature=loss.temperature)
        value, metrics = _loss(function, loss, outputs, micro, scale)
        return value, {**metrics, "loss": value.detach()}

    micros = [micro for _, micro in batcher.micro_batches(shard, runtime.device, agree=runtime.most)]
    sums = MetricSums()
    sums.add({"loss": 0.0})
    for metrics in run_schedule(loaded, micros, compute, forward_only=forward_only):
        sums.add(metrics)
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
