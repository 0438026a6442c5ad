"""Hosts in a placement group: started once, lent to stages, watched, called with a deadline.

What is asked of them in every step goes by line where they are on the driver's machine (:mod:`rl_core.cluster.lines`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.cluster.calls import Deadlines, actor_id_of, fetch
from rl_core.cluster.failures import Subject
from rl_core.cluster.host import Host
from rl_core.cluster.lines import Line
from rl_core.cluster.loss import Loss
from rl_core.cluster.meeting_places import remove_folder
from rl_core.cluster.placement import bundles_in_order, machine_count, machines_of, reserve, room_for
from rl_core.cluster.resources import Resources
from rl_core.cluster.watchdog import Watchdog, Watched, own_node
from rl_core.contracts.backend import Topology, WorkerContext
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import EnvironmentProblem, RLError, WorkerDied
from rl_core.io.permissions import umask_in_force
from rl_core.network import LOOPBACK
from rl_core.secrets.redaction import known_secrets

if TYPE_CHECKING:
    from rl_core.component import ComponentChoice

logger = logging.getLogger(__name__)

UPDATES = "updates"
"""Calls of this concurrency group reach a generator while it samples."""

__all__ = ["UPDATES", "Deadlines", "WorkerPool", "fetch", "group_topologies"]


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
        loss: Loss | None = None,
    ) -> None:
        self._manifest = manifest
        self._network_interface = network_interface
        self._interface: str | None = LOOPBACK
        self._logs = logs
        self._stopping = stopping
        self._loss = loss or Loss()
        self.deadlines = deadlines
        self._resources: Resources | None = None
        self._placement: Any = None
        self._watchdog: Watchdog | None = None
        self._started = 0
        self._bundle_of: dict[str, int] = {}
        self._rank_at: dict[int, Any] = {}
        self._free_bundles: list[int] = []
        self._spare: list[Any] = []
        self._lines: dict[str, Line] = {}
        self._node_of: dict[str, str] = {}
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
        self._watchdog = Watchdog(
            heartbeat_s=self.deadlines.heartbeat_s, start_s=self.deadlines.start_s, loss=self._loss
        )
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

        It is not in ``generators`` until :meth:`enlist`.
        """
        assert self._resources is not None
        needs = {"CPU": 1.0} | ({"GPU": 1.0} if self._resources.gpus else {})
        if not self._free_bundles and self._loss.guard(lambda: room_for(needs)) < 1:
            return None
        bundle = self._free_bundles.pop(0) if self._free_bundles else None
        generator = self._loss.guard(lambda: self._start_generator(bundle))
        self._spare.append(generator)
        return generator

    def trainer_beside(self, generator: Any) -> Any | None:
        """The training worker on the same GPU; None without one."""
        return self._rank_at.get(self._bundle_of.get(actor_id_of(generator), -1))

    def enlist(self, generator: Any) -> None:
        """Take a generator that :meth:`another_generator` started into use."""
        self._spare.remove(generator)
        self.connect([generator])
        self.generators.append(generator)

    def retire(self, generator: Any) -> None:
        """End a generator that is dead or no longer needed; its place becomes free."""
        import ray

        actor_id = actor_id_of(generator)
        if self._watchdog is not None:
            self._watchdog.forget(actor_id)
        self._hang_up(actor_id)
        ray.kill(generator)
        self.generators = [g for g in self.generators if g is not generator]
        self._spare = [g for g in self._spare if g is not generator]
        if actor_id in self._bundle_of:
            self._free_bundles.append(self._bundle_of.pop(actor_id))

    def _start_generator(self, bundle: int | None) -> Any:
        assert self._resources is not None
        name = f"generate-{self._started}"
        self._started += 1
        gpus = self._resources.replica_gpus(outside=bundle is None)
        return self._start(name, "generate", self._resources.generator_threads, gpus=gpus, bundle=bundle)

    def _start(self, name: str, role: str, threads: int, *, gpus: float, bundle: int | None) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._watchdog is not None
        where: Any = "SPREAD"
        if bundle is not None:
            where = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=bundle)
        remote: Any = ray.remote(concurrency_groups={UPDATES: 1}) if role == "generate" else ray.remote  # type: ignore[call-overload]
        placed = remote(Host).options(num_cpus=1, num_gpus=gpus, max_restarts=0, scheduling_strategy=where)
        handle: Any = placed.remote(
            name, self._manifest, str(self._logs), threads, umask=umask_in_force(), interface=self._interface
        )
        if secrets := known_secrets():  # a call's arguments, unlike those of an actor, are kept nowhere
            handle.remember_secrets.remote(secrets)
        self._watchdog.watch(Watched(name, role, handle, self._logs / f"{name}.log"))
        if role == "generate" and bundle is not None:
            self._bundle_of[actor_id_of(handle)] = bundle
        return handle

    def warm(self, actors: Sequence[Any], choice: ComponentChoice) -> None:
        """Have ``actors`` import ``choice`` in the background; a failure shows when it is built."""
        for actor in actors:
            actor.warm.remote(choice.component.factory)

    def build(self, actors: Sequence[Any], choice: ComponentChoice, *, kind: str, context: WorkerContext) -> list[Any]:
        """Build ``choice`` on each actor; returns what each ``setup`` gave. Ranks follow the actors' order."""
        place = self.meeting_place(actors, purpose=kind, starting=True, together=kind == "train")
        self.connect(actors)
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

    def meeting_place(
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
        unknown = [actor for actor in actors if actor_id_of(actor) not in self._node_of]
        nodes = self.get([actor.node.remote() for actor in unknown], starting=starting)
        self._node_of |= {actor_id_of(actor): node for actor, node in zip(unknown, nodes, strict=True)}
        one_machine = len({self._node_of[actor_id_of(actor)] for actor in actors}) == 1
        if together and not one_machine and self._interface == LOOPBACK:
            raise EnvironmentProblem(
                "a machine joined the cluster after the workers of the first one had started, and these listen on "
                "loopback only\n    set run.network_interface for a cluster that grows from one machine"
            )
        asked = actors[0].meeting_place.remote(purpose, one_machine)
        place: Rendezvous = self.get([asked], starting=starting, what=f"meeting ({purpose})")[0]
        self._folders.add(place.folder)
        return place

    def connect(self, actors: Sequence[Any]) -> None:
        """Open a line to each that is on this machine and has none."""
        node = own_node()
        new = [actor for actor in actors if actor_id_of(actor) not in self._lines]
        if node is None or not new:
            return
        for actor, address in zip(new, self.get([a.open_line.remote(node) for a in new], starting=True), strict=True):
            if address is None:
                continue
            try:
                self._lines[actor_id_of(actor)] = Line(address, actor_id_of(actor))
            except (OSError, EOFError, AuthenticationError) as error:
                logger.info("no line to a worker, its calls go through Ray: %s: %s", type(error).__name__, error)

    def on_lines(self, workers: Sequence[Any]) -> bool:
        """Whether there is a line to each."""
        return all(actor_id_of(worker) in self._lines for worker in workers) if self._lines else False

    def ask(self, workers: Sequence[Any], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``method`` of each worker's host with its arguments, by line if there is one to all of them.

        Returns:
            the calls, for :meth:`get`.
        """
        if not self.on_lines(workers):
            return [getattr(worker, method).remote(*own) for worker, own in zip(workers, arguments, strict=True)]
        lines = [self._lines[actor_id_of(worker)] for worker in workers]
        return [line.ask(method, *own) for line, own in zip(lines, arguments, strict=True)]

    def _hang_up(self, actor_id: str) -> None:
        line = self._lines.pop(actor_id, None)
        if line is not None:
            line.close()

    def get(self, references: Sequence[Any], *, starting: bool = False, what: str = "") -> list[Any]:
        """Results of calls; a worker's death, exception or silence becomes an :class:`RLError` that explains it."""
        timeout_s = self.deadlines.start_s if starting else self.deadlines.call_s
        return fetch(references, timeout_s, what=what, crew=self)

    def check(self) -> None:
        """Raise WorkerDied where a training worker is gone, or Ray: its peers would wait for it for ever."""
        self._loss.check()
        death = self._watchdog.fallen("train") if self._watchdog is not None else None
        if death is not None:
            raise death

    def subject(self, actor_id: str) -> Subject | None:
        """Who an actor (hex id) is, for messages."""
        return self._watchdog.subject(actor_id) if self._watchdog is not None else None

    def death(self, actor_id: str, ray_says: str, *, what: str) -> WorkerDied:
        """Why a worker is gone."""
        if self._loss.reason:
            return self._loss.error
        assert self._watchdog is not None
        return self._watchdog.death(actor_id, ray_says, what=what)

    def overdue(self, actor_ids: Sequence[str], timeout_s: float, *, what: str) -> WorkerDied:
        """End workers that did not answer within ``timeout_s``."""
        assert self._watchdog is not None
        silence = f"no answer within {timeout_s:g} s (run.worker_timeout_s, run.start_timeout_s)"
        death = self._watchdog.end(actor_ids, silence, what=what)
        return death or WorkerDied(f"a worker did not answer within {timeout_s:g} s in {what}", cause="hung")

    def unload(self) -> None:
        """Empty all hosts, keep their processes; a generator that is gone, or only coming, is left out."""
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
        for actor_id in list(self._lines):
            self._hang_up(actor_id)
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
