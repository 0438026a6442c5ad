"""Hosts in a placement group: started once, lent to stages, called with a deadline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.cluster.host import Host
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import Topology, WorkerContext
from rl_core.errors import EnvironmentProblem, RLError, WorkerDied

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice

logger = logging.getLogger(__name__)

UPDATES = "updates"
"""Calls of this concurrency group reach a generator while it samples."""


@dataclass(frozen=True)
class Deadlines:
    """Longest waits in seconds: for workers to start, and for one call."""

    start_s: float
    call_s: float


class WorkerPool:
    """The actors of a run. They are reused between stages that need the same resources."""

    def __init__(self, *, manifest: dict[str, str], logs: Path, deadlines: Deadlines) -> None:
        self._manifest = manifest
        self._logs = logs
        self.deadlines = deadlines
        self._resources: Resources | None = None
        self._placement: Any = None
        self.trainers: list[Any] = []
        self.generators: list[Any] = []

    def prepare(self, resources: Resources) -> None:
        """Have the actors for ``resources``; a no-op when they, and perhaps more generators, are there already."""
        if self._resources is not None and self._resources.cover(resources):
            return
        self.close()
        import ray
        from ray.util.placement_group import placement_group

        strategy = "SPREAD" if resources.nodes > 1 else "PACK"
        self._placement = placement_group(resources.bundles, strategy=strategy)
        if not self._placement.wait(timeout_seconds=self.deadlines.start_s):
            have = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            ray.util.remove_placement_group(self._placement)
            self._placement = None
            raise EnvironmentProblem(
                f"no room for the workers after {self.deadlines.start_s:.0f} s: they need {_total(resources)}, "
                f"the cluster has {have}\n    lower backend.parallel or generator.replicas, or add machines"
            )
        order = self._bundles_by_machine(len(resources.bundles)) if resources.nodes > 1 else None
        self.trainers = [
            self._start(
                f"train-{i}",
                _placed(resources.rank_bundle(i), order),
                resources.threads,
                gpus=0.6 if resources.gpus else 0,
            )
            for i in range(resources.ranks)
        ]
        self.generators = [
            self._start(
                f"generate-{i}",
                _placed(resources.replica_bundle(i), order),
                resources.generator_threads,
                gpus=0.4 if resources.gpus else 0,
                concurrency_groups={UPDATES: 1},
            )
            for i in range(resources.replicas)
        ]
        self._resources = resources

    def _bundles_by_machine(self, count: int) -> list[int]:
        """Bundle indices machine by machine, so that neighbouring ranks, which talk most, share one."""
        from ray.util import placement_group_table

        machines: dict[int, str] = placement_group_table(self._placement)["bundles_to_node_id"]
        return sorted(range(count), key=lambda index: (machines[index], index))

    def _start(
        self, name: str, bundle: int, threads: int, *, gpus: float, concurrency_groups: dict[str, int] | None = None
    ) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        remote: Any = ray.remote(concurrency_groups=concurrency_groups) if concurrency_groups else ray.remote  # type: ignore[call-overload]
        actor = remote(Host).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=bundle),
        )
        return actor.remote(name, self._manifest, str(self._logs), threads)

    def warm(self, actors: Sequence[Any], choice: ComponentChoice) -> None:
        """Have ``actors`` import ``choice`` in the background; a failure shows when it is built."""
        for actor in actors:
            actor.warm.remote(choice.component.factory)

    def build(self, actors: Sequence[Any], choice: ComponentChoice, *, kind: str, context: WorkerContext) -> list[Any]:
        """Build ``choice`` on each actor; returns what each ``setup`` gave. Ranks follow the actors' order."""
        address, port = self.get([actors[0].address.remote()], starting=True)[0]
        references = []
        for rank, actor in enumerate(actors):
            own = WorkerContext(
                rank=rank,
                world_size=len(actors),
                master_address=address,
                master_port=port,
                device=context.device,
                threads=context.threads,
                seed=context.seed,
                local_rank=0,
            )
            references.append(actor.build.remote(choice.component.factory, choice.config, own, kind))
        return self.get(references, starting=True)

    def get(self, references: Sequence[Any], *, starting: bool = False, what: str = "") -> list[Any]:
        """Results of calls; a worker's death, exception or silence becomes an :class:`RLError` that explains it."""
        return fetch(references, self.deadlines.start_s if starting else self.deadlines.call_s, what=what)

    def unload(self) -> None:
        """Empty all hosts, keep their processes."""
        self.get([a.unload.remote() for a in (*self.trainers, *self.generators)])

    def close(self) -> None:
        """End the actors and give back their resources."""
        import ray

        for actor in (*self.trainers, *self.generators):
            ray.kill(actor)
        if self._placement is not None:
            ray.util.remove_placement_group(self._placement)
        self._placement, self._resources, self.trainers, self.generators = None, None, [], []


def fetch(references: Sequence[Any], timeout_s: float, *, what: str = "") -> list[Any]:
    """``ray.get`` that raises as soon as one call fails, with the worker's own message.

    Raises:
        WorkerDied: the process behind a call ended.
        RLError: the call raised (its own RLError is passed on), or took longer than ``timeout_s``.
    """
    import ray

    try:
        return ray.get(list(references), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise RLError(
            f"a worker did not answer within {timeout_s:g} s{' in ' + what if what else ''}\n"
            "    raise run.worker_timeout_s if the work really takes that long; see the run's logs/ otherwise"
        ) from None
    except ray.exceptions.RayActorError as error:
        raise WorkerDied(
            f"a worker process ended{' during ' + what if what else ''}: {str(error).strip().splitlines()[0]}\n"
            "    see the run's logs/ for its last words; `rl resume` continues from the last checkpoint"
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else None
        if isinstance(cause, RLError):
            raise cause from None
        raise RLError(f"a worker failed{' in ' + what if what else ''}:\n{error}") from error


def group_topologies(raw: Sequence[Topology]) -> tuple[Topology, ...]:
    """Check that a backend's ranks agree on how they share the work."""
    sizes = {t.dp_size for t in raw}
    outputs = sorted(t.dp_rank for t in raw if t.is_output)
    if len(sizes) != 1 or outputs != list(range(raw[0].dp_size)):
        raise RLError(f"the backend's ranks disagree on the data-parallel layout: {list(raw)}")
    return tuple(raw)


def _placed(bundle: int, order: Sequence[int] | None) -> int:
    return bundle if order is None else order[bundle]


def _total(resources: Resources) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in resources.bundles:
        for key, value in bundle.items():
            total[key] = total.get(key, 0.0) + value
    return total
