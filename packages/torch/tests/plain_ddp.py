"""Plain data parallelism as a strategy of the engine: whole models on all ranks, gradients added up after each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rl_core.contracts.backend import Topology, WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.errors import ConfigError
from rl_torch.engine.config import EngineConfig
from rl_torch.engine.engine import Engine
from rl_torch.engine.microbatches import MicroBatches
from rl_torch.engine.strategy import RoleModel, Strategy, Work, one_by_one
from rl_torch.engine.world import World
from rl_torch.gradients import norm_over_ranks
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.optim import MOMENTS, build_adamw, moments_of, take_step
from rl_torch.policy import check_supported, compute_outputs, wrap_model
from rl_torch.shards import Shard
from torch import Tensor


class PlainModel(RoleModel):
    """A transformers model, whole on every rank."""

    def __init__(self, role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None, world: World) -> None:
        self.world = world
        self.hf = build_model(spec, dtype=torch.float32, device=world.device, head=role.head)
        self.hf.requires_grad_(role.trainable)
        support = check_supported(self.hf)
        self.layout = "auto" if support.packed else "padded"
        self.wrapped = wrap_model(self.hf, role.head, transform=support.transform)
        self.weights = dict(self.hf.named_parameters())  # tied ones once
        self.parameters = sum(p.numel() for p in self.weights.values())
        self.adamw = None if optimizer is None else build_adamw(self.hf.parameters(), optimizer)

    def run(self, micros: MicroBatches, work: Work) -> Iterator[Any]:
        return one_by_one(micros, work, self._outputs)

    def _outputs(self, micro: MicroBatch, work: Work) -> TokenOutputs:
        return compute_outputs(self.wrapped, micro, work.outputs, temperature=work.temperature, **micro.arguments)

    def finish_gradients(self, loss: float, *, unscale: float) -> tuple[float, bool]:
        gradients = [self.world.sum(g) for g in self._gradients()]
        return norm_over_ranks(gradients, [self.world.size] * len(gradients), loss, self.world)

    def update(self, *, rate: float, shrink: float, step: int) -> None:
        take_step(self.adamw, self._gradients(), rate=rate, shrink=shrink)

    def clear_gradients(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def state(self, steps: int) -> list[Shard]:
        tensors: dict[str, Tensor] = {f"model.{name}": p.detach() for name, p in self.weights.items()}
        for name, parameter in self.weights.items() if self.adamw is not None else ():
            moments = moments_of(self.adamw, parameter)
            moments["step"] = torch.tensor(float(steps))
            tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS}
        first = self.world.rank == 0
        return [Shard(name, t, tuple(t.shape), (0,) * t.ndim, owned=first) for name, t in tensors.items()]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, parameter.detach()) for name, parameter in self.weights.items())

    def shapes(self) -> Mapping[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self.weights.items()}

    def _gradients(self) -> list[Tensor]:
        # All ranks have as many micro-batches, fillers among them: a gradient that is None here is None everywhere.
        return [p.grad for p in self.weights.values() if p.grad is not None]


class PlainStrategy(Strategy):
    """One copy of the model for each rank."""

    name = "plain"

    def __init__(self, config: EngineConfig, context: WorkerContext) -> None:
        self.world = World(context)
        self.topology = Topology(context.rank, context.world_size)

    def build(self, role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None) -> PlainModel:
        if spec.adapter is not None:
            raise ConfigError("model.adapter: the plain backend trains all weights")
        return PlainModel(role, spec, optimizer, self.world)

    def base_of(self, model: RoleModel) -> RoleModel:
        raise AssertionError("no role has an adapter")


class PlainBackend(Engine):
    """Implements :class:`rl_core.contracts.backend.Backend`."""

    strategy = PlainStrategy
