"""Workers in a placement group: started once, lent to stages, watched, called with a deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_ray.loss import RayLoss
from rl_secrets.redaction import known_secrets

from rl_core.cluster.calls import Deadlines, actor_of, fetch
from rl_core.cluster.failures import WorkerInfo, ray_lost
from rl_core.cluster.group_rendezvous import remove_folder
from rl_core.cluster.placement import bundles_in_order, machine_count, machines_of, reserve, room_for
from rl_core.cluster.resources import Resources
from rl_core.cluster.watchdog import Watchdog, Watched
from rl_core.cluster.worker import actor_class
from rl_core.contracts.backend import Topology, WorkerContext
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import EnvironmentProblem, RLError, WorkerDied
from rl_core.io.permissions import umask_in_force
from rl_core.network import LOOPBACK

if TYPE_CHECKING:
    from rl_core.component import ComponentChoice

logger = logging.getLogger(__name__)

__all__ = ["Deadlines", "WorkerPool", "group_topologies"]


class WorkerPool:
    """The actors of a run. They are reused between stages that need the same resources.

    Args:
        stopping: whether the user asked to stop, looked at while waiting for room in the cluster.
        network_interface: that workers on several machines use among themselves; None for that of Ray's addresses.
        loss: what has become of Ray; by default nothing is known.

    Attributes:
        trainers, generators: handles of those that are in use.
    """

    def __init__(
        self,
        *,
        manifest: dict[str, str],
        logs: Path,
        deadlines: Deadlines,
        stopping: Callable[[], bool] = lambda: False,
        network_interface: str | None = None,
        loss: RayLoss | None = None,
    ) -> None:
        self._manifest = manifest
        self._network_interface = network_interface
        self._interface: str | None = LOOPBACK
        self._logs = logs
        self._stopping = stopping
        self._loss = loss or RayLoss(ray_lost)
        self.deadlines = deadlines
        self._resources: Resources | None = None
        self._placement: Any = None
        self._watchdog: Watchdog | None = None
        self._started = 0
        self._bundle_of: dict[Any, int] = {}
        self._rank_at: dict[int, Any] = {}
        self._free_bundles: list[int] = []
        self._spare: list[Any] = []
        self._node_of: dict[Any, str] = {}
        self._folders: set[str] = set()
        self.trainers: list[Any] = []
        self.generators: list[Any] = []

    def prepare(self, resources: Resources) -> None:
        """Have the actors for ``resources``; a no-op when they, and perhaps more generators, are there already.

        Raises:
            EnvironmentProblem: the cluster had no room within the deadline.
            WorkerDied: Ray itself is gone.
        """
        self._loss.guard(lambda: self._prepare(resources))

    def _prepare(self, resources: Resources) -> None:
        ready = self._resources is not None and self._resources.cover(resources)
        if ready and len(self.generators) >= resources.replicas:
            return
        self.close()
        wait_s = self.deadlines.resources_s
        self._placement = reserve(
            resources, wait_s=self.deadlines.start_s if wait_s is None else wait_s, stopping=self._stopping
        )
        self._watchdog = Watchdog(heartbeat_s=self.deadlines.heartbeat_s, start_s=self.deadlines.start_s)
        self._resources = resources
        self._interface = self._network_interface or (LOOPBACK if machine_count() == 1 else None)
        order = list(range(len(resources.bundles)))
        if resources.nodes > 1:
            machines = machines_of(self._placement, len(order))
            order = bundles_in_order(machines, resources.ranks, per_machine=resources.gpus)
        ranks = [order[resources.rank_bundle(rank)] for rank in range(resources.ranks)]
        self.trainers = [
            self._start(f"train-{rank}", "train", resources.threads, gpus=resources.rank_gpus, bundle=bundle)
            for rank, bundle in enumerate(ranks)
        ]
        self._rank_at = dict(zip(ranks, self.trainers, strict=True)) if resources.shared else {}
        self._started = 0
        self._free_bundles = [order[resources.replica_bundle(i)] for i in range(resources.replicas)]
        self.generators = [self._start_generator(self._free_bundles.pop(0)) for _ in range(resources.replicas)]

    def another_generator(self) -> Any | None:
        """Start one more generator process, in the place of one that died or in free room; None without either.

        It is not in ``generators`` until :meth:`add_generator`.
        """
        assert self._resources is not None
        needs = {"CPU": 1.0} | ({"GPU": 1.0} if self._resources.gpus else {})
        if not self._free_bundles and self._loss.guard(lambda: room_for(needs)) < 1:
            return None
        bundle = self._free_bundles.pop(0) if self._free_bundles else None
        generator = self._loss.guard(lambda: self._start_generator(bundle))
        self._spare.append(generator)
        return generator

    def trainer_on_gpu_of(self, generator: Any) -> Any | None:
        """The training worker on the same GPU; None without one."""
        return self._rank_at.get(self._bundle_of.get(generator, -1))

    def add_generator(self, generator: Any) -> None:
        """Take a generator that :meth:`another_generator` started into use."""
        self._spare.remove(generator)
        self.generators.append(generator)

    def retire(self, generator: Any) -> None:
        """End a generator that is dead or no longer needed; its place becomes free."""
        import ray

        if self._watchdog is not None:
            self._watchdog.forget(generator)
        ray.kill(generator)
        self.generators = [g for g in self.generators if g is not generator]
        self._spare = [g for g in self._spare if g is not generator]
        if generator in self._bundle_of:
            self._free_bundles.append(self._bundle_of.pop(generator))

    def _start_generator(self, bundle: int | None) -> Any:
        assert self._resources is not None
        name = f"generate-{self._started}"
        self._started += 1
        gpus = self._resources.replica_gpus(outside=bundle is None)
        return self._start(name, "generate", self._resources.generator_threads, gpus=gpus, bundle=bundle)

    def _start(self, name: str, role: str, threads: int, *, gpus: float, bundle: int | None) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._watchdog is not None
        where: Any = "SPREAD"
        if bundle is not None:
            where = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=bundle)
        secrets = known_secrets()
        handle: Any = (
            actor_class()
            .options(num_cpus=1, num_gpus=gpus, max_restarts=0, scheduling_strategy=where)
            .remote(
                name,
                self._manifest,
                str(self._logs),
                threads,
                secrets=bool(secrets),
                umask=umask_in_force(),
                interface=self._interface,
            )
        )
        if secrets:  # a call's arguments, unlike those of an actor, are kept nowhere
            handle.remember_secrets.remote(secrets)
        self._watchdog.watch(Watched(name, role, handle, self._logs / f"{name}.log"))
        if role == "generate" and bundle is not None:
            self._bundle_of[handle] = bundle
        return handle

    def warm(self, actors: Sequence[Any], choice: ComponentChoice) -> None:
        """Have ``actors`` import ``choice`` in the background; a failure shows when it is built."""
        self._start_of([actor.warm.remote(choice.component.factory) for actor in actors], begins=True)

    def build(self, actors: Sequence[Any], choice: ComponentChoice, *, kind: str, context: WorkerContext) -> list[Any]:
        """Build ``choice`` on each actor; returns what each ``setup`` gave. Ranks follow the actors' order."""
        place = self.rendezvous_point(actors, purpose=kind, starting=True, together=kind == "train")
        references = []
        for rank, actor in enumerate(actors):
            own = replace(
                context,
                rank=rank,
                world_size=len(actors),
                master_address=place.address,
                master_port=place.port,
                local_rank=0,
                rendezvous=place,
            )
            references.append(actor.build.remote(choice.component.factory, choice.config, own, kind))
        return self.get(references, starting=True)

    def rendezvous_point(
        self, actors: Sequence[Any], *, purpose: str, starting: bool = False, together: bool = True
    ) -> Rendezvous:
        """Where ``actors`` may meet as a new group; the first of them is its rank 0.

        Args:
            purpose: of the group; an earlier one's place for the same is given back.
            starting: the actors may still be starting.
            together: they make a group, and must be able to.

        Raises:
            EnvironmentProblem: they are on several machines, and their processes use loopback only.
        """
        unknown = [actor for actor in actors if actor not in self._node_of]
        nodes = self.get([actor.node.remote() for actor in unknown], starting=starting)
        self._node_of |= zip(unknown, nodes, strict=True)
        one_machine = len({self._node_of[actor] for actor in actors}) == 1
        if together and not one_machine and self._interface == LOOPBACK:
            raise EnvironmentProblem(
                "a machine joined the cluster after the workers of the first one had started, and these listen on "
                "loopback only\n    set run.network_interface for a cluster that grows from one machine"
            )
        asked = actors[0].rendezvous_point.remote(purpose, one_machine)
        place: Rendezvous = self.get([asked], starting=starting, what=f"rendezvous ({purpose})")[0]
        self._folders.add(place.folder)
        return place

    def get(self, references: Sequence[Any], *, starting: bool = False, what: str = "") -> list[Any]:
        """Results of calls; a worker's death, exception or silence becomes an :class:`RLError` that explains it.

        Args:
            starting: the workers may be starting, importing or loading until they answer.
        """
        if not starting:
            return fetch(references, self.deadlines.call_s, what=what, directory=self)
        self._start_of(references, begins=True)
        try:
            return fetch(references, self.deadlines.start_s, what=what, directory=self)
        finally:
            self._start_of(references, begins=False)

    def _start_of(self, references: Sequence[Any], *, begins: bool) -> None:
        """Tell the watchdog that the workers behind calls start, or have started."""
        if self._watchdog is not None:
            self._watchdog.starts([actor_of(reference) for reference in references], begins)

    def check(self) -> None:
        """Raise WorkerDied where a training worker is gone, or Ray: its peers would wait for it for ever."""
        self._loss.check()
        death = self._watchdog.fallen("train") if self._watchdog is not None else None
        if death is not None:
            raise death

    def info(self, actor_id: str) -> WorkerInfo | None:
        """Who an actor (hex id) is, for messages."""
        return self._watchdog.info(actor_id) if self._watchdog is not None else None

    def death(self, actor_id: str, ray_says: str, *, what: str) -> WorkerDied:
        """Why a worker is gone."""
        if self._loss.reason:
            return ray_lost(self._loss.reason)
        assert self._watchdog is not None
        return self._watchdog.death(actor_id, ray_says, what=what)

    def overdue(self, actor_ids: Sequence[str], timeout_s: float, *, what: str) -> WorkerDied:
        """End workers that did not answer within ``timeout_s``."""
        assert self._watchdog is not None
        silence = f"no answer within {timeout_s:g} s (run.worker_timeout_s, run.start_timeout_s)"
        death = self._watchdog.end(actor_ids, silence, what=what)
        return death or WorkerDied(f"a worker did not answer within {timeout_s:g} s in {what}", cause="hung")

    def unload(self) -> None:
        """Empty all workers, keep their processes; a generator that is gone, or only coming, is left out."""
        for generator in list(self._spare):
            self.retire(generator)
        self.get([a.unload.remote() for a in self.trainers], what="unloading")
        for generator in list(self.generators):
            try:
                self.get([generator.unload.remote()], what="unloading")
            except WorkerDied as death:
                logger.warning("%s", death)
                self.retire(generator)

    def close(self) -> None:
        """End the actors, whatever they are doing, and give back their resources; they are gone where Ray is."""
        try:
            self._loss.guard(self._end_actors)
        except WorkerDied:
            if not self._loss.reason:
                raise
            if self._watchdog is not None:
                self._watchdog.close()
        self._placement, self._resources, self._watchdog = None, None, None
        self.trainers, self.generators, self._spare = [], [], []
        self._bundle_of, self._rank_at, self._free_bundles, self._node_of = {}, {}, [], {}
        for folder in self._folders:  # of workers of this machine that did not end by themselves
            remove_folder(folder)
        self._folders.clear()

    def _end_actors(self) -> None:
        from ray.util.placement_group import remove_placement_group

        if self._watchdog is not None:
            self._watchdog.end_all()
        if self._placement is not None:
            remove_placement_group(self._placement)


def group_topologies(raw: Sequence[Topology]) -> tuple[Topology, ...]:
    """Check that a backend's ranks agree on how they share the work."""
    sizes = {t.dp_size for t in raw}
    outputs = sorted(t.dp_rank for t in raw if t.is_output)
    if len(sizes) != 1 or outputs != list(range(raw[0].dp_size)):
        raise RLError(f"the backend's ranks disagree on the data-parallel layout: {list(raw)}")
    return tuple(raw)
