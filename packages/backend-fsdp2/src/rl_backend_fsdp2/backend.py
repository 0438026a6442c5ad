"""The FSDP2 backend: several models in one process, sharded over all ranks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, TrainResult, WeightBucket, WorkerContext
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_torch.models import build_model
from rl_torch.optim import build_adamw
from rl_torch.policy import check_supported, wrap_model
from rl_torch.seeding import prepare_process
from rl_torch.weights import to_buckets

from rl_backend_fsdp2 import checkpoint
from rl_backend_fsdp2.config import Fsdp2Config
from rl_backend_fsdp2.mesh import Mesh
from rl_backend_fsdp2.sharding import gather, hf_state, shard_model
from rl_backend_fsdp2.step import Layout, LoadedModel, evaluate_shard, forward_shard, train_shard


class Fsdp2Backend:
    """Implements :class:`rl_core.contracts.backend.Backend` on one rank of a data-parallel group."""

    def __init__(self, config: Fsdp2Config) -> None:
        self._config = config
        self._layout = Layout(max_tokens=config.max_tokens_per_microbatch, packing=config.packing)
        self._roles: dict[str, LoadedModel] = {}
        self._mesh: Mesh | None = None

    def setup(self, context: WorkerContext) -> Topology:
        """Join the process group and set threads and seeds."""
        if self._mesh is not None:
            raise RuntimeError("the backend is set up already; close() it first")
        prepare_process(threads=context.threads, seed=context.seed, rank=context.rank)
        self._mesh = Mesh(context)
        return Topology(dp_rank=context.rank, dp_size=context.world_size)

    def load(self, role: Role, model: ModelSpec, optimizer: OptimizerSpec | None) -> ModelInfo:
        """Build a role with float32 weights and shard it.

        Raises:
            EnvironmentProblem: the model cannot be read, or its architecture is not supported.
            ValueError: a trainable role without an optimizer.
        """
        if role.trainable and optimizer is None:
            raise ValueError(f"role {role.name!r} is trainable and needs an optimizer")
        built = build_model(model, dtype=torch.float32, head=role.head)
        check_supported(built, packed=self._config.packing != "padded")
        if self._config.activation_checkpointing and role.trainable:
            # transformers checkpoints its layers in training mode only; dropout is 0 either way.
            built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            built.train()
        info = ModelInfo(
            parameters=sum(p.numel() for p in built.parameters()),
            max_length=getattr(built.config, "max_position_embeddings", None) or 0,
            vocab_size=built.config.vocab_size,
        )
        wrapped = wrap_model(built, role.head, chunk_tokens=self._config.logprob_chunk_tokens)
        wrapped.requires_grad_(role.trainable)
        wrapped = shard_model(wrapped, self._joined(), precision=self._config.precision)
        loaded = LoadedModel(role=role, model=wrapped)
        if role.trainable and optimizer is not None:
            loaded.optimizer, loaded.spec = build_adamw(wrapped.parameters(), optimizer), optimizer
        self._roles[role.name] = loaded
        return info

    def forward(
        self, role: str, shard: SequenceBatch, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, np.ndarray]:
        """``outputs`` without gradients, in shard order."""
        return forward_shard(
            self._role(role), shard, tuple(outputs), temperature=temperature, layout=self._layout, mesh=self._joined()
        )

    def train(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """One optimizer step on the union of all ranks' shards."""
        return train_shard(self._role(role), shard, loss, scale, layout=self._layout, mesh=self._joined())

    def evaluate(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """Loss and metrics without a step."""
        return evaluate_shard(self._role(role), shard, loss, scale, layout=self._layout, mesh=self._joined())

    def weights(self, role: str) -> Iterator[WeightBucket]:
        """Stream float32 parameters under Hugging Face names; one is gathered at a time, rank 0 yields."""
        full = ((name, gather(tensor)) for name, tensor in hf_state(self._role(role).model))
        if self._joined().rank == 0:
            yield from to_buckets(full)
        else:
            for _ in full:  # gathering needs every rank
                continue

    def save(self, role: str, directory: str) -> None:
        """Write what a bit-exact resume needs; ``directory`` belongs to this role alone."""
        checkpoint.save(self._role(role), Path(directory), self._joined())

    def restore(self, role: str, directory: str) -> None:
        """Read what :meth:`save` wrote, on any number of ranks."""
        checkpoint.restore(self._role(role), Path(directory), self._joined())

    def export(self, role: str, directory: str) -> None:
        """Write a Hugging Face folder."""
        checkpoint.export(self._role(role), Path(directory), self._joined())

    def sleep(self) -> None:
        """Move parameters and optimizer states to host memory; on CPU there is nothing to free."""
        self._move("cpu")

    def wake(self) -> None:
        """Move them back."""
        self._move(self._joined().device)

    def close(self) -> None:
        """Drop all models and leave the process group."""
        self._roles.clear()
        gc.collect()
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None

    def _move(self, device: str | torch.device) -> None:
        if self._joined().device.type == "cpu":
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
