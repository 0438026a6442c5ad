"""Placement of generators (on the trainers' GPUs or on separate ones), and the weight transports it allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rl_core.config.problems import Problem

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig

FASTEST_FIRST = ("ipc", "collective")
"""Order in which ``weight_transport: auto`` tries transports on GPUs before the object store, which always works."""


def has_own_gpus(stage: StageConfig) -> bool:
    """Whether each generator has a GPU besides those for training; ``auto`` means where rollouts are sampled ahead."""
    if stage.generator is None or not stage.run.gpus:
        return False
    placement = stage.generator.config.placement
    return placement == "separate" or (placement == "auto" and stage.run.max_staleness > 0)


def weight_transport(stage: StageConfig) -> str:
    """``object_store``, ``ipc`` or ``collective``: what the config says, or the best that is possible."""
    assert stage.generator is not None
    chosen: str = stage.generator.config.weight_transport
    if chosen != "auto":
        return chosen
    possible = [name for name in FASTEST_FIRST if stage.run.gpus and why_not(name, stage) is None]
    return next(iter(possible), "object_store")


def why_not(transport: str, stage: StageConfig) -> str | None:
    """Why weights cannot go this way in ``stage``; None if they can."""
    assert stage.generator is not None
    if transport == "object_store":
        return None
    unfit = _no_shared_gpu(stage) if transport == "ipc" else _no_group(stage)
    if unfit is not None:
        return unfit
    for choice in (stage.backend, stage.generator):
        if transport not in choice.config.weight_transports:
            return f"the {choice.kind} {choice.name!r} does not offer it"
    return None


def placement_problems(stage: StageConfig) -> Iterator[Problem]:
    """What contradicts the layout; paths are below the section ``generator``."""
    if stage.generator is None:
        return
    config: Any = stage.generator.config
    if config.placement == "colocated" and not stage.run.gpus:
        yield Problem(
            "placement",
            "there are no GPUs to share (run.gpus: 0); on the CPU every worker is a process of its own",
            fix="remove it, or set run.gpus",
        )
    reason = why_not(config.weight_transport, stage) if config.weight_transport != "auto" else None
    if reason is not None:
        yield Problem(
            "weight_transport",
            f"weights cannot go by {config.weight_transport}: {reason}",
            fix="weight_transport: auto",
        )


def gpus_on_this_machine(stage: StageConfig) -> int:
    """GPUs that the workers of a stage on one machine need."""
    replicas = stage.generator.config.replica_range[0] if stage.generator is not None else 0
    training: int = stage.run.gpus
    return training + replicas if has_own_gpus(stage) else max(training, replicas if training else 0)


def _no_shared_gpu(stage: StageConfig) -> str | None:
    assert stage.generator is not None
    run = stage.run
    if not run.gpus:
        return "there are no GPUs to share (run.gpus: 0)"
    if has_own_gpus(stage):
        return "only processes on the same GPU share memory, and the generators have GPUs of their own"
    ranks = stage.backend.config.world_size(run.gpus * run.nodes)
    fewest, most = stage.generator.config.replica_range
    if fewest != most or most > ranks:
        many = str(most) if fewest == most else f"{fewest} to {most}"
        return (
            f"each generator must be on a GPU with a training worker; there are {many} generators and {ranks} workers"
        )
    return None


def _no_group(stage: StageConfig) -> str | None:
    if stage.run.gpus and not has_own_gpus(stage):
        return "NCCL does not join processes on the same GPU, and the generators share the trainers'"
    return None
