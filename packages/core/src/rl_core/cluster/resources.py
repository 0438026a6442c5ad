"""What a stage needs of the cluster: one bundle per worker, and the CPU threads each may use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Resources:
    """Workers of a stage.

    Attributes:
        ranks: training processes.
        replicas: generator processes, for which there must be room.
        max_replicas: generator processes at most, where the cluster has room for more; 0: ``replicas``.
        gpus: GPUs per machine for training (0: everything on CPU).
        nodes: machines.
        threads: CPU threads a training rank uses; generator replicas use ``generator_threads``.
            Training and generation alternate, so both may use every core.
        separate: generators have GPUs of their own; else they share the ranks' GPUs.
    """

    ranks: int
    replicas: int
    gpus: int
    nodes: int
    threads: int
    generator_threads: int
    max_replicas: int = 0
    separate: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def shared(self) -> bool:
        """Whether trainers and generators are on the same GPUs."""
        return bool(self.gpus and (self.replicas or self.max_replicas) and not self.separate)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Ray resources: a bundle per worker, or per rank and the generator that shares its GPU."""
        if self.gpus and not self.separate:
            return [{"CPU": 2.0, "GPU": 1.0} for _ in range(max(self.ranks, self.replicas))]
        each = {"CPU": 1.0} | ({"GPU": 1.0} if self.gpus else {})
        return [dict(each) for _ in range(self.ranks + self.replicas)]

    @property
    def rank_gpus(self) -> float:
        """Share of a GPU that Ray counts for a rank; the larger part where a generator shares it."""
        return 0.0 if not self.gpus else 1.0 if self.separate else 0.6

    def replica_gpus(self, *, outside: bool) -> float:
        """Share of a GPU for a generator, ``outside`` the bundles or in one of them."""
        return 0.0 if not self.gpus else 1.0 if self.separate or outside else 0.4

    def local_gpus(self, present: int | None) -> int:
        """GPUs that a Ray of this machine alone is to have; ``present``: how many there are, where that is known."""
        fewest = -(-sum(int(bundle.get("GPU", 0)) for bundle in self.bundles) // self.nodes)
        more = max(0, self.max_replicas - self.replicas) if self.gpus else 0
        return max(fewest, min(fewest + more, present or fewest))

    def cover(self, other: Resources) -> bool:
        """Whether workers started for these resources can serve a stage that asks for ``other``."""
        same = other == replace(
            self,
            replicas=other.replicas,
            max_replicas=other.max_replicas,
            generator_threads=other.generator_threads,
            separate=other.separate if other.replicas == 0 else self.separate,
        )
        threads = other.replicas == 0 or self.generator_threads == other.generator_threads
        return same and threads and self.replicas >= other.replicas

    def rank_bundle(self, rank: int) -> int:
        return rank

    def replica_bundle(self, replica: int) -> int:
        return replica if self.gpus and not self.separate else self.ranks + replica


@dataclass(frozen=True)
class RayNeeds:
    """What a run needs of Ray.

    Attributes:
        workers: of every stage.
        address: as the user wrote it, see :func:`rl_core.cluster.ray_address.ray_address`.
        start_s: longest to wait for it.
        cpus: cores of a Ray of this machine alone; None: all.
    """

    workers: tuple[Resources, ...]
    address: str | None
    start_s: float
    cpus: int | None = None


def usable_cpus() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
