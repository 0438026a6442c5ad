"""What a config asks of the cluster, in the cluster's own terms: it knows no configs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_core.cluster.calls import Deadlines
from rl_core.cluster.ray_address import ray_address
from rl_core.cluster.resources import RayNeeds, Resources, usable_cpus
from rl_core.config.generators import has_own_gpus

if TYPE_CHECKING:
    from rl_core.config.run_section import RunSection
    from rl_core.config.stage import RunConfig, StageConfig


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
        separate=has_own_gpus(stage),
    )


def ray_needs(config: RunConfig) -> RayNeeds:
    """The Ray of a run: started or joined once, with room for every stage."""
    run = config.stages[0].run
    workers = tuple(resources_of(stage) for stage in config.stages)
    return RayNeeds(workers, address=run.address, start_s=run.start_timeout_s, cpus=run.cpus)


def deadlines_of(run: RunSection) -> Deadlines:
    """The deadlines in a ``run`` section."""
    return Deadlines(
        start_s=run.start_timeout_s,
        call_s=run.worker_timeout_s,
        heartbeat_s=run.heartbeat_timeout,
        resources_s=run.wait_for_resources,
    )


def cluster_interface(run: RunSection) -> str | None:
    """``run.network_interface`` where the run joins a cluster; a Ray that it starts itself is on one machine."""
    return run.network_interface if ray_address(run.address) else None
