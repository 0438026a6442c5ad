"""The FSDP2 backend: several models in one process, sharded over all ranks."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, TrainResult, WeightBucket, WorkerContext
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_torch.architectures import vocabulary
from rl_torch.kernels.apply import prepare_process as prepare_kernels
from rl_torch.profiling import Profiler
from rl_torch.role_files import finish_all
from rl_torch.seeding import prepare_process
from rl_torch.transports.buckets import exhaust
from rl_torch.weights import to_buckets

from rl_backend_fsdp2 import checkpoint, export
from rl_backend_fsdp2.build import build_role
from rl_backend_fsdp2.mesh import Mesh, Sizes
from rl_backend_fsdp2.microbatches import MicroBatcher
from rl_backend_fsdp2.step import LoadedModel, evaluate_shard, forward_shard, train_shard

if TYPE_CHECKING:  # what computes needs no pydantic: it runs wherever PyTorch and transformers do
    from rl_backend_fsdp2.config import Fsdp2Config


class Fsdp2Backend:
    """Implements :class:`rl_core.contracts.backend.Backend` on one rank of a replicate × dp × cp × tp mesh."""

    def __init__(self, config: Fsdp2Config) -> None:
        self._config = config
        self._batcher = MicroBatcher(max_tokens=config.max_tokens_per_microbatch, packing=config.packing)
        self._roles: dict[str, LoadedModel] = {}
        self._mesh: Mesh | None = None
        self._profiler = Profiler()

    def setup(self, context: WorkerContext) -> Topology:
        """Join the process group and set threads and seeds."""
        if self._mesh is not None:
            raise RuntimeError("the backend is set up already; close() it first")
        prepare_process(threads=context.threads, seed=context.seed, rank=context.rank)
        prepare_kernels(self._config.kernels, context.device)
        parallel = self._config.parallel
        others = parallel.replicate * parallel.cp * parallel.tp
        sizes = Sizes(
            replicate=parallel.replicate,
            dp=parallel.dp or max(1, context.world_size // others),
            cp=parallel.cp,
            tp=parallel.tp,
        )
        self._mesh = Mesh(context, sizes)
        self._batcher = MicroBatcher(
            max_tokens=self._config.max_tokens_per_microbatch,
            packing=self._config.packing,
            width_multiple=(2 * sizes.cp if sizes.cp > 1 else 1) * (sizes.tp if parallel.sequence else 1),
        )
        return self._mesh.topology

    def load(self, role: Role, model: ModelSpec, optimizer: OptimizerSpec | None) -> ModelInfo:
        """Build a role and shard it; trained weights are float32.

        Raises:
            EnvironmentProblem: the model cannot be read, or its architecture is not supported.
            ConfigError: it cannot be split or adapted as the config asks.
            ValueError: a trainable role without an optimizer.
        """
        if role.trainable and optimizer is None:
            raise ValueError(f"role {role.name!r} is trainable and needs an optimizer")
        if role.base_of is not None:
            source = self._role(role.base_of)
            self._roles[role.name] = LoadedModel(
                role=role, model=source.model, adapter=source.adapter, base_only=True, packing=source.packing
            )
        else:
            self._roles[role.name] = build_role(role, model, optimizer, config=self._config, mesh=self._joined())
        loaded = self._roles[role.name].model.model
        return ModelInfo(
            parameters=sum(math.prod(p.shape) for p in loaded.parameters()),
            max_length=getattr(loaded.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0,
            vocab_size=vocabulary(loaded.config),
            auxiliary_loss=self._roles[role.name].balancing is not None,
        )

    def forward(
        self, role: str, shard: SequenceBatch, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, np.ndarray]:
        """``outputs`` without gradients, in shard order."""
        return forward_shard(
            self._role(role), shard, tuple(outputs), temperature=temperature, batcher=self._batcher, mesh=self._joined()
        )

    def train(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """One optimizer step on the union of all ranks' shards."""
        return train_shard(
            self._role(role),
            shard,
            loss,
            scale,
            batcher=self._batcher,
            mesh=self._joined(),
            profiler=self._profiler,
        )

    def evaluate(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """Loss and metrics without a step."""
        return evaluate_shard(self._role(role), shard, loss, scale, batcher=self._batcher, mesh=self._joined())

    def weights(self, role: str) -> Iterator[WeightBucket]:
        """Stream parameters under Hugging Face names, adapters merged; one is gathered at a time, rank 0 yields."""
        full = self.named_weights(role)
        if self._joined().rank == 0:
            yield from to_buckets(full)
        else:
            exhaust(full)

    def named_weights(self, role: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole parameters for weight transports, the same on every rank."""
        return export.full_weights(self._role(role))

    def save(self, role: str, directory: str) -> None:
        """Write what a bit-exact resume needs; ``directory`` belongs to this role alone."""
        checkpoint.save(self._role(role), Path(directory), self._joined(), background=self._config.async_save)

    def is_saving(self) -> bool:
        """Whether a background write of any role is running."""
        return any(checkpoint.is_saving(loaded) for loaded in self._roles.values())

    def finish_saving(self) -> None:
        """Wait until everything saved is on disk."""
        finish_all(partial(checkpoint.finish, loaded) for loaded in self._roles.values())

    def restore(self, role: str, directory: str) -> None:
        """Read what :meth:`save` wrote, on any number of ranks."""
        checkpoint.restore(self._role(role), Path(directory), self._joined())

    def export(self, role: str, directory: str) -> None:
        """Write a Hugging Face folder, adapters merged; the adapter alone goes to ``adapter/`` in it."""
        export.export(self._role(role), Path(directory), self._joined())

    def sleep(self) -> None:
        """Move parameters and optimizer states to host memory; on CPU they are there already."""
        self._move("cpu")

    def wake(self) -> None:
        """Move them back."""
        self._move(self._joined().device)

    def start_profile(self, trace: str | None) -> None:
        """Measure the parts of optimizer steps, and record a trace, until :meth:`stop_profile`."""
        self._profiler.start(trace)

    def stop_profile(self) -> dict[str, float]:
        """Seconds by part."""
        return self._profiler.stop()

    def close(self) -> None:
        """Drop all models and leave the process group."""
        self._profiler.close()
        self.finish_saving()
        self._roles.clear()
        gc.collect()
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None

    def _move(self, device: str | torch.device) -> None:
        if self._joined().device.type == "cpu" or self._config.cpu_offload:
            return
        for loaded in self._roles.values():
            loaded.model.to(device)
            for state in loaded.optimizer.state.values() if loaded.optimizer else ():
                for name, tensor in state.items():
                    state[name] = tensor.to(device)
        torch.cuda.empty_cache()

    def _joined(self) -> Mesh:
        if self._mesh is None:
            raise RuntimeError("the backend is not set up; call setup() first")
        return self._mesh

    def _role(self, name: str) -> LoadedModel:
        if name not in self._roles:
            raise ValueError(f"no role {name!r} is loaded; loaded: {', '.join(sorted(self._roles)) or 'none'}")
        return self._roles[name]
