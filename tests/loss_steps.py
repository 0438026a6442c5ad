"""What a rank of the loss tests does: optimizer steps whose learning rate is 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.contracts.backend import TrainResult, WorkerContext
from rl_core.contracts.model import OptimizerSpec, Role


def take_steps(
    rank: int, world: int, port: int, *, cases: Mapping[str, Any], specs: Mapping[Any, Any], config: Mapping[str, Any]
) -> dict[str, TrainResult]:
    """What this rank's backend reports of each case.

    The learning rate is 0, so that every case finds the weights as they were loaded.

    Args:
        cases: ``head``, ``weights``, ``batch``, ``loss`` and ``scale`` of an optimizer step, by name.
        specs: the model of every head and weights.
        config: fields of the backend's section.
    """
    optimizer = OptimizerSpec(learning_rate=0.0, max_grad_norm=None)
    backend = Fsdp2Backend(Fsdp2Config(name="fsdp2", **config))
    backend.setup(WorkerContext(rank, world, "127.0.0.1", port, threads=1))
    try:
        for head, weights in sorted({(case.head, case.weights) for case in cases.values()}):
            backend.load(Role(f"{head} {weights}", trainable=True, head=head), specs[head, weights], optimizer)
        results = {}
        for name, case in cases.items():
            shard = case.batch.select(case.batch.split_balanced(world)[rank])
            results[name] = backend.train(f"{case.head} {case.weights}", shard, case.loss, case.scale)
        return results
    finally:
        backend.close()
