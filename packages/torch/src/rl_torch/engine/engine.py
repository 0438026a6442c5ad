"""The engine: several models in one process, each spread over ranks as a strategy says."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, TrainResult, WeightBucket, WorkerContext
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role

from rl_torch.architectures import vocabulary
from rl_torch.engine import checkpoint, export, step
from rl_torch.engine.loss_scale import LossScale
from rl_torch.engine.microbatches import MicroBatcher, MicroBatches
from rl_torch.engine.roles import LoadedRole
from rl_torch.engine.strategy import RoleModel, Strategy
from rl_torch.kernels.apply import prepare_process as prepare_kernels
from rl_torch.profiling import Profiler
from rl_torch.role_files import finish_all
from rl_torch.seeding import prepare_process
from rl_torch.transports.buckets import exhaust
from rl_torch.weights import to_buckets

if TYPE_CHECKING:  # what computes needs no pydantic: it runs wherever PyTorch and transformers do
    from rl_torch.engine.config import EngineConfig


class Engine:
    """Implements :class:`rl_core.contracts.backend.Backend` on one rank; a backend names its strategy.

    Attributes:
        strategy: called with the config and the context, when the process is set up.
    """

    strategy: ClassVar[type[Strategy]]

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._roles: dict[str, LoadedRole] = {}
        self._joined: tuple[Strategy, MicroBatcher] | None = None
        self._profiler = Profiler()

    def setup(self, context: WorkerContext) -> Topology:
        """Set threads and seeds, and join the process group."""
        if self._joined is not None:
            raise RuntimeError("the backend is set up already; close() it first")
        prepare_process(threads=context.threads, seed=context.seed, rank=context.rank)
        prepare_kernels(self._config.kernels, context.device)
        made = self.strategy(self._config, context)
        batcher = MicroBatcher(
            max_tokens=self._config.max_tokens_per_microbatch,
            device=made.world.device,
            agree_on_count=made.agree_on_count,
            width_multiple=made.width_multiple,
        )
        self._joined = made, batcher
        return made.topology

    @property
    def joined(self) -> Strategy:
        """The strategy that setup made.

        Raises:
            RuntimeError: the backend is not set up.
        """
        if self._joined is None:
            raise RuntimeError("the backend is not set up; call setup() first")
        return self._joined[0]

    def role(self, name: str) -> LoadedRole:
        """A loaded role.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self._roles:
            raise ValueError(f"no role {name!r} is loaded; loaded: {', '.join(sorted(self._roles)) or 'none'}")
        return self._roles[name]

    def load(self, role: Role, model: ModelSpec, optimizer: OptimizerSpec | None) -> ModelInfo:
        """Build this rank's part of a role.

        Raises:
            EnvironmentProblem: the model cannot be read, or its architecture is not supported.
            ConfigError: it cannot be split or adapted as the config asks.
            ValueError: a trainable role without an optimizer, or the base of a role without an adapter.
        """
        if role.trainable and optimizer is None:
            raise ValueError(f"role {role.name!r} is trainable and needs an optimizer")
        strategy = self.joined
        with strategy.active():
            if role.base_of is not None:
                source = self.role(role.base_of)
                if source.adapter is None:
                    raise ValueError(f"role {role.name!r} is the base of {role.base_of!r}, which has no adapter")
                loaded = LoadedRole(role, strategy.base_of(source.model))
            else:
                own = optimizer if role.trainable else None
                loaded = LoadedRole(role, strategy.build(role, model, own), model.adapter, own)
                if strategy.scales_loss and role.trainable:
                    loaded.loss_scale = LossScale()
        self._roles[role.name] = loaded
        return _info(loaded.model)

    def forward(
        self, role: str, shard: SequenceBatch, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, np.ndarray]:
        """``outputs`` without gradients, in shard order; meaningful on output ranks."""
        loaded = self.role(role)
        with self.joined.active():
            return step.forward(loaded, shard, self._cut(loaded, shard), tuple(outputs), temperature)

    def train(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """One optimizer step on the union of all data-parallel ranks' shards."""
        loaded = self.role(role)
        with self.joined.active():
            return step.train(loaded, self._cut(loaded, shard), loss, scale, profiler=self._profiler)

    def evaluate(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """Loss and metrics without a step."""
        loaded = self.role(role)
        with self.joined.active():
            return step.evaluate(loaded, self._cut(loaded, shard), loss, scale)

    def weights(self, role: str) -> Iterator[WeightBucket]:
        """Stream parameters under Hugging Face names, adapters merged; one is gathered at a time, rank 0 yields."""
        full = self.named_weights(role)
        if self.joined.world.rank == 0:
            yield from to_buckets(full)
        else:
            exhaust(full)

    def named_weights(self, role: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole parameters for weight transports (:class:`rl_torch.transports.buckets.NamedWeights`)."""
        return self.role(role).model.named_weights()

    def save(self, role: str, directory: str) -> None:
        """Write what a bit-exact resume needs; ``directory`` belongs to this role alone."""
        loaded, strategy = self.role(role), self.joined
        with strategy.active():
            checkpoint.save(loaded, Path(directory), strategy.world, background=self._config.async_save)

    def is_saving(self) -> bool:
        """Whether a background write of any role is running."""
        return any(loaded.is_saving for loaded in self._roles.values())

    def finish_saving(self) -> None:
        """Wait until everything saved is on disk."""
        finish_all(loaded.finish_saving for loaded in self._roles.values())

    def restore(self, role: str, directory: str) -> None:
        """Read what :meth:`save` wrote, on any number of ranks and in any layout."""
        loaded, strategy = self.role(role), self.joined
        with strategy.active():
            checkpoint.restore(loaded, Path(directory), strategy.world, backend=strategy.name)

    def export(self, role: str, directory: str) -> None:
        """Write a Hugging Face folder, adapters merged; an adapter alone goes to ``adapter/`` in it."""
        export.export(self.role(role).model, Path(directory), self.joined.world)

    def sleep(self) -> None:
        """Free device memory; on CPU there is nothing to free."""
        if self.joined.world.device.type == "cuda":
            for loaded in self._roles.values():
                loaded.model.sleep()
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Undo :meth:`sleep`."""
        if self.joined.world.device.type == "cuda":
            for loaded in self._roles.values():
                loaded.model.wake()

    def start_profile(self, trace: str | None) -> None:
        """Measure the parts of optimizer steps, and record a trace, until :meth:`stop_profile`."""
        self._profiler.start(trace)

    def stop_profile(self) -> dict[str, float]:
        """Seconds by part."""
        return self._profiler.stop()

    def unload(self) -> None:
        """Wait for background writes and drop all models, but stay in the process group."""
        self.finish_saving()
        self._roles.clear()
        gc.collect()

    def close(self) -> None:
        """Drop all models and leave the process group."""
        self._profiler.close()
        self.unload()
        if self._joined is not None:
            self.joined.close()
            self._joined = None

    def _cut(self, loaded: LoadedRole, shard: SequenceBatch) -> MicroBatches:
        assert self._joined is not None  # or no role would be loaded
        return self._joined[1].cut(shard, loaded.model.layout)


def _info(model: RoleModel) -> ModelInfo:
    text = model.hf.config.get_text_config(decoder=True)
    return ModelInfo(
        parameters=model.parameters,
        max_length=getattr(text, "max_position_embeddings", None) or 0,
        vocab_size=vocabulary(model.hf.config),
        auxiliary_loss=model.balancing is not None,
    )
