"""The Megatron backend: several models in one process, each split over tensor, pipeline and data-parallel ranks."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, TrainResult, WeightBucket, WorkerContext
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_torch.kernels.installed import chosen
from rl_torch.profiling import Profiler
from rl_torch.role_files import finish_all
from rl_torch.weights import to_buckets

from rl_backend_megatron import checkpoint
from rl_backend_megatron.build import build_role, share_base
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.export import export
from rl_backend_megatron.microbatches import MicroBatcher
from rl_backend_megatron.modules import has_packed_kernels
from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.step import LoadedModel, evaluate_shard, forward_shard, train_shard

logger = logging.getLogger(__name__)


class MegatronBackend:
    """Implements :class:`rl_core.contracts.backend.Backend` on one rank of a dp × pp × tp grid."""

    def __init__(self, config: MegatronConfig) -> None:
        self._config = config
        self._batcher = MicroBatcher(max_tokens=config.max_tokens_per_microbatch)
        self._roles: dict[str, LoadedModel] = {}
        self._runtime: Runtime | None = None
        self._profiler = Profiler()

    def setup(self, context: WorkerContext) -> Topology:
        """Join the process groups and set threads and seeds."""
        if self._runtime is not None:
            raise RuntimeError("the backend is set up already; close() it first")
        self._runtime = Runtime(context, self._config.parallel)
        for kernel in chosen(self._config.kernels):
            kernel.prepare_process(context.device)
            logger.info("kernel %s replaces no layers: those of Megatron Core are used", kernel.name)
        self._batcher = micro_batcher_of(self._config, self._runtime.device)
        return self._runtime.topology()

    def load(self, role: Role, model: ModelSpec, optimizer: OptimizerSpec | None) -> ModelInfo:
        """Build this rank's part of a role.

        Raises:
            EnvironmentProblem: the model cannot be read, or its architecture is not supported.
            ConfigError: the layout does not divide it, or its adapter is not LoRA.
            ValueError: a trainable role without an optimizer, or the base of a role without an adapter.
        """
        if role.trainable and optimizer is None:
            raise ValueError(f"role {role.name!r} is trainable and needs an optimizer")
        runtime = self._joined()
        with runtime.active():
            if role.base_of is not None:
                loaded = share_base(role, self._role(role.base_of))
            else:
                loaded = build_role(role, model, optimizer, config=self._config, runtime=runtime)
        self._roles[role.name] = loaded
        return loaded.info

    def forward(
        self, role: str, shard: SequenceBatch, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, np.ndarray]:
        """``outputs`` without gradients, in shard order; meaningful on output ranks."""
        loaded, runtime = self._role(role), self._joined()
        with runtime.active():
            return forward_shard(
                loaded, shard, tuple(outputs), temperature=temperature, batcher=self._batcher, runtime=runtime
            )

    def train(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """One optimizer step on the union of all data-parallel ranks' shards."""
        loaded, runtime = self._role(role), self._joined()
        with runtime.active():
            return train_shard(
                loaded, shard, loss, scale, batcher=self._batcher, runtime=runtime, profiler=self._profiler
            )

    def evaluate(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """Loss and metrics without a step."""
        loaded, runtime = self._role(role), self._joined()
        with runtime.active():
            return evaluate_shard(loaded, shard, loss, scale, batcher=self._batcher, runtime=runtime)

    def weights(self, role: str) -> Iterator[WeightBucket]:
        """Stream parameters under Hugging Face names, LoRA merged in; rank 0 yields, the others take part."""
        yield from to_buckets(self.named_weights(role))

    def named_weights(self, role: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole parameters for weight transports, on rank 0."""
        loaded = self._role(role)
        return loaded.weights.stream(loaded.stage, merged=loaded.base_of is None)

    def save(self, role: str, directory: str) -> None:
        """Write what a bit-exact resume needs; ``directory`` belongs to this role alone."""
        loaded, runtime = self._role(role), self._joined()
        with runtime.active():
            checkpoint.save(loaded, Path(directory), runtime, background=self._config.async_save)

    def is_saving(self) -> bool:
        """Whether a background write of any role is running."""
        return any(checkpoint.is_saving(loaded) for loaded in self._roles.values())

    def finish_saving(self) -> None:
        """Wait until everything saved is on disk."""
        finish_all(partial(checkpoint.finish, loaded) for loaded in self._roles.values())

    def restore(self, role: str, directory: str) -> None:
        """Read what :meth:`save` wrote, in any layout."""
        with self._joined().active():
            checkpoint.restore(self._role(role), Path(directory), self._joined())

    def export(self, role: str, directory: str) -> None:
        """Write a Hugging Face folder."""
        export(self._role(role), Path(directory), self._joined())

    def sleep(self) -> None:
        """Move optimizer state to host memory; on CPU there is nothing to free."""
        self._offload(away=True)

    def wake(self) -> None:
        """Move it back."""
        self._offload(away=False)

    def start_profile(self, trace: str | None) -> None:
        """Measure the parts of optimizer steps, and record a trace, until :meth:`stop_profile`."""
        self._profiler.start(trace)

    def stop_profile(self) -> dict[str, float]:
        """Seconds by part."""
        return self._profiler.stop()

    def close(self) -> None:
        """Drop all models and leave the process groups."""
        self._profiler.close()
        for loaded in self._roles.values():
            checkpoint.finish(loaded)
        self._roles.clear()
        gc.collect()
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _offload(self, *, away: bool) -> None:
        if self._joined().device.type == "cpu":
            return
        for loaded in self._roles.values():
            if loaded.trainer is not None:
                optimizer = loaded.trainer.optimizer
                optimizer.offload_to_cpu() if away else optimizer.restore_from_cpu()
        torch.cuda.empty_cache()

    def _joined(self) -> Runtime:
        if self._runtime is None:
            raise RuntimeError("the backend is not set up; call setup() first")
        return self._runtime

    def _role(self, name: str) -> LoadedModel:
        if name not in self._roles:
            raise ValueError(f"no role {name!r} is loaded; loaded: {', '.join(sorted(self._roles)) or 'none'}")
        return self._roles[name]


def micro_batcher_of(config: MegatronConfig, device: torch.device) -> MicroBatcher:
    """How shards become micro-batches; ``auto`` packs where attention has a kernel for it."""
    packing = config.packing
    if packing == "auto":
        packing = "packed" if has_packed_kernels(device) else "padded"
    split = config.parallel.tp if config.parallel.sequence else 1
    return MicroBatcher(max_tokens=config.max_tokens_per_microbatch, multiple=split, packing=packing)
