"""What a stage needs of the cluster: one bundle per worker, and the CPU threads each may use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig, StageConfig


@dataclass(frozen=True)
class Resources:
    """Workers of a stage.

    Attributes:
        ranks: training processes.
        replicas: generator processes.
        gpus: GPUs per machine (0: everything on CPU).
        nodes: machines.
        threads: CPU threads a training rank uses; generator replicas use ``generator_threads``.
            Training and generation alternate, so both may use every core.
    """

    ranks: int
    replicas: int
    gpus: int
    nodes: int
    threads: int
    generator_threads: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Ray resources: a bundle per rank; generators share the ranks' GPUs and have CPU bundles otherwise."""
        if self.gpus:
            return [{"CPU": 2.0, "GPU": 1.0} for _ in range(max(self.ranks, self.replicas))]
        return [{"CPU": 1.0} for _ in range(self.ranks + self.replicas)]

    def cover(self, other: Resources) -> bool:
        """Whether workers started for these resources can serve a stage that asks for ``other``."""
        same = replace(self, replicas=other.replicas, generator_threads=other.generator_threads) == other
        threads = other.replicas == 0 or self.generator_threads == other.generator_threads
        return same and threads and self.replicas >= other.replicas

    def rank_bundle(self, rank: int) -> int:
        return rank

    def replica_bundle(self, replica: int) -> int:
        return replica if self.gpus else self.ranks + replica


def usable_cpus() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resources_of(stage: StageConfig) -> Resources:
    """The workers ``stage`` asks for."""
    run = stage.run
    ranks = stage.backend.config.world_size(run.gpus * run.nodes)
    replicas = stage.generator.config.replicas if stage.generator else 0
    cpus = run.cpus or usable_cpus()

    def per_worker(workers: int) -> int:
        return max(1, cpus // max(1, -(-workers // run.nodes)))

    return Resources(
        ranks=ranks,
        replicas=replicas,
        gpus=run.gpus,
        nodes=run.nodes,
        threads=per_worker(ranks),
        generator_threads=per_worker(replicas),
    )


def largest(config: RunConfig) -> list[Resources]:
    """The resources of every stage; Ray is started once, for the largest."""
    return [resources_of(stage) for stage in config.stages]
