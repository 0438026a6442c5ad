"""What a rank does when training steps that skip completions without a gradient are compared with ones that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.distributed as dist
from rl_algo_grpo.config import GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.model import reduce_metrics
from rl_core.zero_gradient import without_zero_gradient
from rl_plugin_kit.reference import from_buckets

OPTIMIZER = OptimizerSpec(learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
"""With moments and decay, which go on where the gradient is 0."""


class RankModel:
    """One role of a backend on all ranks; each runs the algorithm, as the controller would for all of them."""

    def __init__(self, backend: Fsdp2Backend, role: str, rank: int, world: int) -> None:
        self._backend, self._role, self._rank, self._world = backend, role, rank, world

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        parts = batch.split_balanced(self._world)
        results = self._gathered(
            self._backend.forward(self._role, batch.select(parts[self._rank]), outputs, temperature)
        )
        return {name: batch.scatter(parts, [r[name] for r in results], per_token=True) for name in outputs}

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        part, scale, skipped = without_zero_gradient(batch, loss, scale or Scale.of(batch))
        shard = part.select(part.split_balanced(self._world)[self._rank])
        return reduce_metrics(self._gathered(self._backend.train(self._role, shard, loss, scale))) | skipped

    def _gathered(self, mine: Any) -> list[Any]:
        results = [mine] * self._world
        dist.all_gather_object(results, mine)
        return results


def compare(
    rank: int,
    world: int,
    port: int,
    *,
    variants: Mapping[str, Mapping[str, Any]],
    spec: ModelSpec,
    batch: SequenceBatch,
    config: Mapping[str, Any],
) -> dict[tuple[str, bool], tuple[list[dict[str, float]], dict[str, np.ndarray]]]:
    """Metrics of two training steps and the weights after them (on rank 0), by variant and ``skip_zero_gradient``.

    Args:
        variants: fields of the algorithm's section.
        batch: rollouts without ``sampled_logprobs``.
        config: fields of the backend's section.
    """
    backend = Fsdp2Backend(Fsdp2Config(name="fsdp2", **config))
    backend.setup(WorkerContext(rank, world, "127.0.0.1", port, threads=1))
    found = {}
    try:
        for name, fields in variants.items():
            for skip in (False, True):
                backend.load(Role("policy", trainable=True), spec, OPTIMIZER)
                policy = RankModel(backend, "policy", rank, world)
                exact = policy.forward(batch)["logprobs"]
                off = np.random.default_rng(1).normal(scale=0.1, size=len(exact)).astype(np.float32)
                sampled = (exact + off) * batch.token_columns["loss_mask"]
                rollouts = batch.with_columns(token={"sampled_logprobs": sampled})
                algorithm = Grpo(GrpoConfig(name="grpo", **{**fields, "skip_zero_gradient": skip}))
                steps = [algorithm.step(rollouts, {"policy": policy}) for _ in range(2)]
                found[name, skip] = steps, from_buckets(backend.weights("policy"))
    finally:
        backend.close()
    return found
