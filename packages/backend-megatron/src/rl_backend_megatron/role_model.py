"""A role's model under Megatron Core: how it is computed, updated, stored and gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from rl_torch.engine.microbatches import MicroBatches
from rl_torch.engine.strategy import RoleModel, Work
from rl_torch.microbatch import Layout, MicroBatch, Packing
from rl_torch.shards import Shard
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_backend_megatron.lora import Adapters
from rl_backend_megatron.microbatches import packed_sequences
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.optimizer import Trainer
from rl_backend_megatron.outputs import OutputHead
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.state import load_state, shards_of
from rl_backend_megatron.weights import WeightMap


@dataclass
class MegatronModel(RoleModel):
    """One pipeline stage of a model, split over tensor-parallel ranks.

    Attributes:
        hf: without storage.
        stage: this rank's part.
        head: computes outputs from hidden states.
        weights: how the stage corresponds to Hugging Face tensors.
        trainer: None for frozen roles.
        lora: None without adapters.
        base_only: compute with the adapters off (``stage`` is then another role's).
    """

    hf: PreTrainedModel
    stage: StageModel
    head: OutputHead
    weights: WeightMap
    runtime: Runtime
    layout: Packing | Layout = "padded"
    trainer: Trainer | None = None
    lora: Adapters | None = None
    base_only: bool = False

    def __post_init__(self) -> None:
        self.parameters = sum(p.numel() for p in self.hf.parameters())
        self.dtype = self.stage.config.params_dtype

    def as_base(self) -> MegatronModel:
        """The same stage with its adapters off."""
        return replace(self, trainer=None, base_only=True)

    def run(self, micros: MicroBatches, work: Work) -> list[Any]:
        """All in one schedule; a backward pass leaves gradients in the trainer's buffers, added up over ranks."""
        model: nn.Module = self.trainer.ddp if self.trainer is not None else self.stage
        made = list(micros)

        def step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable[[Tensor], tuple]]:
            micro = next(batches)
            output = model(micro.input_ids, micro.position_ids, None, packed_seq_params=packed_sequences(micro))
            return output, partial(self._three, work, micro)

        schedule = get_forward_backward_func()
        with self.lora.disabled() if self.base_only and self.lora is not None else nullcontext():
            return schedule(
                forward_step_func=step,
                data_iterator=iter(made),
                model=[model],
                num_microbatches=len(made),
                # Shapes travel with the tensors between stages; these two are required but not used.
                seq_length=made[0].input_ids.shape[1],
                micro_batch_size=made[0].input_ids.shape[0],
                forward_only=not work.backward,
            )

    def _three(self, work: Work, micro: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Any]:
        """The form of a loss that the schedule divides by nothing: (loss, token count, what is wanted back)."""
        value, wanted = work.objective(micro, self.head(micro, hidden, work.outputs, temperature=work.temperature))
        return value, torch.ones((), dtype=torch.int, device=value.device), wanted

    def finish_gradients(self, loss: float, *, unscale: float) -> tuple[float, bool]:
        """See :meth:`rl_backend_megatron.optimizer.Trainer.norm`."""
        return self._trained.norm(loss)

    def update(self, *, rate: float, shrink: float, step: int) -> None:
        """One step of Megatron's AdamW."""
        self._trained.step(rate=rate, shrink=shrink)

    def clear_gradients(self) -> None:
        """In DDP's buffers and in the optimizer."""
        self._trained.clear()

    def state(self, steps: int) -> list[Shard]:
        """Nothing for the base of another role."""
        return [] if self.base_only else shards_of(self.stage, self.trainer, self.lora, self.runtime)

    def load_state(self, read: Callable[[Sequence[Shard]], None], *, steps: int) -> None:
        """Through copies where Megatron keeps tensors in other shapes."""
        if not self.base_only:
            load_state(self.stage, self.trainer, self.lora, self.runtime, read=read, steps=steps)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """On rank 0, nothing elsewhere."""
        return self.weights.stream(self.stage, merged=not self.base_only)

    def shapes(self) -> Mapping[str, torch.Size]:
        """Of the Hugging Face tensors."""
        return self.weights.shapes

    def sleep(self) -> None:
        """Move the optimizer's state to host memory."""
        if self.trainer is not None:
            self.trainer.optimizer.offload_to_cpu()

    def wake(self) -> None:
        """Move it back."""
        if self.trainer is not None:
            self.trainer.optimizer.restore_from_cpu()

    @property
    def _trained(self) -> Trainer:
        assert self.trainer is not None  # of a trained role
        return self.trainer
