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
        replicas: generator processes, for which there must be room.
        max_replicas: generator processes at most, where the cluster has room for more; 0: ``replicas``.
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
    max_replicas: int = 0

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
        same = other == replace(
            self,
            replicas=other.replicas,
            max_replicas=other.max_replicas,
            generator_threads=other.generator_threads,
        )
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
    fewest, most = stage.generator.config.replica_range if stage.generator else (0, 0)
    cpus = run.cpus or usable_cpus()

    def per_worker(workers: int) -> int:
        return max(1, cpus // max(1, -(-workers // run.nodes)))

    return Resources(
        ranks=ranks,
        replicas=fewest,
        max_replicas=most,
        gpus=run.gpus,
        nodes=run.nodes,
        threads=per_worker(ranks),
        generator_threads=per_worker(most),
    )


def largest(config: RunConfig) -> list[Resources]:
    """The resources of every stage; Ray is started once, for the largest."""
    return [resources_of(stage) for stage in config.stages]
