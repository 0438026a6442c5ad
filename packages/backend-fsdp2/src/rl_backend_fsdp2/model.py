"""A role's model under FSDP2: how it is computed, updated, stored and gathered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rl_core.contracts.model import AdapterSpec
from rl_torch.engine.microbatches import MicroBatches
from rl_torch.engine.strategy import RoleModel, Work, one_by_one
from rl_torch.gradients import norm_over_ranks
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import Layout, MicroBatch, Packing
from rl_torch.optim import MOMENTS, moments_of, take_step
from rl_torch.policy import compute_outputs, in_batch_order, score_indices
from rl_torch.routing import Balancing
from rl_torch.shards import Shard
from rl_torch.varlen import ATTENTION as VARLEN
from rl_torch.varlen import Segments
from safetensors.torch import save_file
from torch import Tensor, nn

from rl_backend_fsdp2 import adapters
from rl_backend_fsdp2.adapters import BASE, HEAD, is_adapter, outside_name
from rl_backend_fsdp2.context_parallel import ContextSplit, split_forward
from rl_backend_fsdp2.dtensors import copies, gather, is_written_here, local, own_slice
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.sharding import Wrapped, release, stored_tensors

if TYPE_CHECKING:
    from rl_backend_fsdp2.adalora import RankSchedule


@dataclass
class Fsdp2Model(RoleModel):
    """A transformers model, sharded or whole.

    Attributes:
        base_only: compute with the adapter off (``wrapped`` is then another role's).
        cpu_offload: parameters and optimizer are in host memory always.
        optimizer: None for frozen roles.
        extra: for AdaLoRA.
        sharded: all parameters, trained or not, as sharded.
    """

    wrapped: Wrapped
    mesh: Mesh
    layout: Packing | Layout = "auto"
    adapter: AdapterSpec | None = None
    base_only: bool = False
    cpu_offload: bool = False
    balancing: Balancing | None = None
    optimizer: torch.optim.Optimizer | None = None
    extra: RankSchedule | None = None
    sharded: list[nn.Parameter] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.hf = self.wrapped.model
        # Once: walking through a small model's modules takes as long as the update of its weights.
        self.sharded = list(self.wrapped.parameters())
        self.parameters = sum(math.prod(p.shape) for p in self.sharded)

    def as_base(self) -> Fsdp2Model:
        """The same model with its adapter off."""
        return replace(self, base_only=True, balancing=None, optimizer=None, extra=None)

    def run(self, micros: MicroBatches, work: Work) -> Iterator[Any]:
        """Gradients are reduced after every micro-batch: keeping them whole until the last one would hold an unsharded
        gradient of the whole model on each rank.
        """
        yield from one_by_one(micros, work, self.outputs)
        if not work.backward:
            release(self.wrapped)
        elif self.extra is not None:
            # Once per step and not once per rank: gradients are added up.
            (self.extra.penalty() * (work.loss_scale / self.mesh.size)).backward()

    def outputs(self, micro: MicroBatch, work: Work) -> TokenOutputs:
        """Of a micro-batch, over all context-parallel ranks."""
        names = tuple(name for name in work.outputs if name != "router_loss")
        with adapters.switched_off(self.wrapped, self.base_only):
            if self.mesh.cp_group is None:
                extra: dict[str, Any] = {**micro.arguments}
                if self.hf.config._attn_implementation == VARLEN:
                    extra["segments"] = Segments.of(micro)
                if "router_loss" in work.outputs:
                    extra["balancing"] = self.balancing
                return compute_outputs(self.wrapped, micro, names, temperature=work.temperature, **extra)
            results = split_forward(
                self.wrapped,
                micro,
                ContextSplit.of(micro, self.mesh.cp_group),
                outputs=names,
                temperature=work.temperature,
                scores=score_indices(self.hf.config, self.wrapped.head, micro),
            )
            return in_batch_order(results, micro)

    @torch.no_grad()
    def finish_gradients(self, loss: float, *, unscale: float) -> tuple[float, bool]:
        """Computed on local shards, because a DTensor operation costs more than a small model's update."""
        if self.extra is not None:
            adapters.sum_replicated_gradients(self.wrapped, self.mesh.sum)
        gradients = self._gradients()
        if unscale != 1.0:
            torch._foreach_mul_(gradients, unscale)
        # Ranks that hold the same element report a fraction of it each.
        counts = [copies(p, self.mesh.size) for p in self.sharded if p.grad is not None]
        return norm_over_ranks(gradients, counts, loss, self.mesh)

    @torch.no_grad()
    def update(self, *, rate: float, shrink: float, step: int) -> None:
        """One AdamW step; AdaLoRA then prunes."""
        assert self.optimizer is not None  # of a trained role
        take_step(self.optimizer, self._gradients(), rate=rate, shrink=shrink)
        if self.extra is not None:
            self.extra.after_step(step)

    def clear_gradients(self) -> None:
        """They have no memory until the next backward pass."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def metrics(self) -> dict[str, float]:
        """AdaLoRA's ranks."""
        return {} if self.extra is None else {"adapter_rank": self.extra.kept()}

    def state(self, steps: int) -> list[Shard]:
        """Parameters and AdamW moments under Hugging Face names; with an adapter, of what is trained."""
        return [
            Shard(
                name=name,
                data=local(tensor),
                shape=tuple(tensor.shape),
                offset=tuple(part.start for part in own_slice(tensor)),
                owned=is_written_here(tensor, self.mesh.coordinates),
            )
            for name, tensor in self._stored_state(steps)
        ]

    def load_state(self, read: Callable[[Sequence[Shard]], None], *, steps: int) -> None:
        """In place."""
        release(self.wrapped)
        read(self.state(steps))

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters in float32, the same on every rank."""
        for name, tensor in stored_tensors(self.wrapped):
            if is_adapter(name):
                continue
            whole = gather(tensor)
            if whole.is_floating_point():
                whole = whole.float()
            if self.adapter is not None and not self.base_only and f"{BASE}.weight" in name:
                whole = adapters.merge(self.hf, name, whole, self.adapter)
            yield outside_name(name), whole

    def shapes(self) -> Mapping[str, torch.Size]:
        """Without adapters."""
        return {outside_name(n): t.shape for n, t in stored_tensors(self.wrapped) if not is_adapter(n)}

    def export_adapter(self, directory: Path) -> None:
        """What ``PeftModel.from_pretrained`` reads on top of the model the training started from."""
        if self.adapter is None or self.base_only:
            return
        state = {
            adapters.saved_name(name): gather(tensor).to("cpu").contiguous()
            for name, tensor in stored_tensors(self.wrapped)
            if (is_adapter(name) and ".ranknum." not in name) or name.startswith(f"{HEAD}.")
        }
        if self.mesh.rank == 0:
            directory.mkdir(exist_ok=True)
            save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
            adapters.saved_config(self.adapter, self.hf).save_pretrained(str(directory))

    def sleep(self) -> None:
        """Move parameters and optimizer states to host memory."""
        self._move("cpu")

    def wake(self) -> None:
        """Move them back."""
        self._move(self.mesh.device)

    def _move(self, device: str | torch.device) -> None:
        if self.cpu_offload:
            return
        self.wrapped.to(device)
        for state in self.optimizer.state.values() if self.optimizer else ():
            for name, tensor in state.items():
                state[name] = tensor.to(device)

    def _gradients(self) -> list[Tensor]:
        return [local(p.grad) for p in self.sharded if p.grad is not None]

    def _stored_state(self, steps: int) -> Iterator[tuple[str, Tensor]]:
        if self.base_only:
            return
        trained = {name: p for name, p in self.hf.named_parameters() if p.requires_grad}
        for name, tensor in stored_tensors(self.wrapped):
            if self.adapter is None or name in trained or is_adapter(name):
                yield f"model.{outside_name(name)}", tensor
        if self.optimizer is None:
            return
        for name, parameter in trained.items():
            state = moments_of(self.optimizer, parameter)
            state["step"] = torch.tensor(float(steps), device=parameter.device)
            for moment in MOMENTS:
                yield f"{moment}.{outside_name(name)}", state[moment]
