"""The process behind every worker: an asyncio Ray actor that holds one component at a time.

It knows no kind of component. A blocking component has one thread of its own; what an async one returns to be awaited
is awaited on the actor's event loop. Workers are kept between stages: a stage unloads what it built and the next one
builds its own in the same, already warm process.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from rl_ray.diagnosis import dump_on_signal
from rl_secrets.redaction import RedactingFormatter, mask_streams, remember_secrets

from rl_core.cluster.component_thread import ComponentThread, ExitsAreErrors
from rl_core.cluster.group_rendezvous import RendezvousPoints
from rl_core.cluster.heartbeat import Heartbeat, own_heartbeat
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.profiling import Profiles
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import RLError
from rl_core.io.appending import LogFile
from rl_core.network import LOOPBACK, chosen, use_interface

logger = logging.getLogger(__name__)

_HEALTH = "health"
"""The concurrency group of the calls that are answered whatever the worker is doing."""


def actor_class() -> Any:
    """:class:`Worker` for Ray, which is imported only here: its settings must be made before."""
    import ray

    for method in (Worker.heartbeat, Worker.until_death):
        ray.method(concurrency_group=_HEALTH)(method)
    return ray.remote(concurrency_groups={_HEALTH: 4})(Worker)  # type: ignore[call-overload]


class Worker:
    """Runs inside a Ray actor.

    A blocking component gets one call after the other. Ray keeps no order among calls to an async actor that are
    under way at the same time: whoever needs one waits for each.

    Args:
        secrets: whether :meth:`remember_secrets` will be called; until then all other work waits.
    """

    def __init__(
        self,
        name: str,
        manifest: dict[str, str],
        logs: str | None,
        threads: int,
        *,
        secrets: bool = False,
        umask: int | None = None,
        interface: str | None = LOOPBACK,
    ) -> None:
        # Every 700 new objects, as by default, garbage is searched for all through the imports and in every step.
        gc.set_threshold(10_000)
        if umask is not None:  # the run directory's, not that of whoever started this machine's Ray
            os.umask(umask)
        # Before anything imports torch: OpenMP reads these once.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._name = name
        self._activities: list[str] = []
        mask_streams()
        self._log = _log_to(Path(logs) / f"{name}.log") if logs else None
        logger.info("%s: pid %d on %s", name, os.getpid(), socket.gethostname())
        self._masked = asyncio.Event()
        if not secrets:
            self._masked.set()
        self._component: Any = None
        self._ends: dict[str, Any] = {}
        self._thread = ComponentThread("component")
        self._updates = ComponentThread("updates")
        self._refusal: RLError | None = None
        self._places = RendezvousPoints()
        self._own_address = ""
        from rl_core.discovery.registry import load_registry

        self._registry = load_registry()
        try:
            self._registry.check_manifest(manifest)
            self._own_address = _listen_on(interface)
        except RLError as error:
            # Raised by the first call: as it is, where an actor that cannot be built only leaves a text.
            self._refusal = error

    async def heartbeat(self) -> Heartbeat:
        """A sign of life."""
        return own_heartbeat(self._activities[-1] if self._activities else "")

    async def until_death(self) -> None:
        """Never returns: Ray ends the call, and so tells the caller, when the process is gone."""
        await asyncio.Event().wait()

    async def node(self) -> str:
        """Id of the Ray node that this worker is on."""
        import ray

        self._check_ready()
        return str(ray.get_runtime_context().get_node_id())

    async def rendezvous_point(self, purpose: str, one_machine: bool) -> Rendezvous:
        """A place for a new group of which this worker is the first rank; see :class:`RendezvousPoints`."""
        self._check_ready()
        return self._places.open(purpose, address=self._own_address, one_machine=one_machine)

    async def remember_secrets(self, values: frozenset[str]) -> None:
        """Mask ``values`` in the log and in what is printed here."""
        remember_secrets(values)
        self._masked.set()

    async def pid(self) -> int:
        """Process id, for messages and tests."""
        return os.getpid()

    async def warm(self, factory: str) -> None:
        """Import what a later :meth:`build` needs, while others are at work."""
        await self._run("importing", lambda: self._registry.resolve(factory))

    async def build(
        self, factory: str, config: Any, context: WorkerContext, kind: str, *, load: tuple[Any, ...] | None = None
    ) -> Any:
        """Create the component, ``setup`` it and, with ``load``, its arguments, ``load`` it; what ``setup`` returns."""
        self._check_ready()
        await self._drop()
        topology = await self._run(f"building {factory}", lambda: self._build(factory, config, context, kind))
        if load is not None:
            await self.call("load", *load)
        return topology

    def _build(self, factory: str, config: Any, context: WorkerContext, kind: str) -> Any:
        for outcome in self._registry.call("on_worker_start", role=kind, rank=context.rank):
            if outcome.error is not None:
                raise RLError(
                    f"plugin {outcome.package}: on_worker_start failed in {self._name}: "
                    f"{type(outcome.error).__name__}: {outcome.error}\n"
                    f"    fix or disable it: RL_DISABLE_PLUGINS={outcome.package}"
                ) from outcome.error
        make = self._registry.resolve(factory)
        # What was imported stays: looking through it again and again took a tenth of a small model's steps.
        gc.freeze()
        self._component = make(config)
        logger.info("%s: built %s (rank %d of %d)", self._name, factory, context.rank, context.world_size)
        return self._component.setup(replace(context))

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the component."""
        return await self._run(method, lambda: getattr(self._component, method)(*args))

    async def call_each(self, method: str, buckets: list[Any], *args: Any, while_sampling: bool = False) -> Any:
        """Like :meth:`call`, with object references inside ``buckets`` fetched here, not by the caller.

        Args:
            while_sampling: do not wait for what the component is doing.
        """

        def call() -> Any:
            import ray

            return getattr(self._component, method)(ray.get(buckets), *args)

        return await self._run(method, call, self._updates if while_sampling else None)

    async def stream(self, method: str, keep: bool, *args: Any) -> list[Any]:
        """Iterate a method's results to the end; put each into the object store if ``keep``."""

        def stream() -> list[Any]:
            import ray

            return [ray.put(item) for item in getattr(self._component, method)(*args) if keep]

        found: list[Any] = await self._run(method, stream)
        return found

    async def start_profile(self, folder: str | None) -> bool:
        """Have the component profile itself, with a trace into ``folder`` if given; False where it cannot."""
        component = self._component
        if not isinstance(component, Profiles):
            return False
        trace = f"{folder}/{self._name}.trace.json.gz" if folder else None
        await self._run("start_profile", lambda: component.start_profile(trace))
        return True

    async def stop_profile(self) -> dict[str, float]:
        """Seconds by section since :meth:`start_profile`; none where the component cannot tell."""
        component = self._component
        if not isinstance(component, Profiles):
            return {}
        return dict(await self._run("stop_profile", component.stop_profile))

    async def transport(self, end: str, method: str, *args: Any, while_sampling: bool = False) -> Any:
        """Call a method of this worker's end of a weight transport (a reference to its class), made at first use.

        Args:
            while_sampling: do not wait for what the component is doing.
        """

        def call() -> Any:
            if end not in self._ends:
                self._ends[end] = self._registry.resolve(end)(self._component)
            return getattr(self._ends[end], method)(*args)

        return await self._run(method, call, self._updates if while_sampling else None)

    async def attend(self, end: str, method: str, *args: Any) -> Any:
        """Await a method of an end (a reference to its class) that is called on the event loop, whatever the component
        is doing; the end may call the component in its thread."""
        await self._masked.wait()
        with ExitsAreErrors():
            if self._component is None:
                raise RuntimeError("the component has been unloaded")
            if end not in self._ends:
                self._ends[end] = self._registry.resolve(end)(self._component, self._run)
            return await getattr(self._ends[end], method)(*args)

    async def unload(self) -> None:
        """Drop the component, so that the process can hold another."""
        try:
            await self._drop()
        finally:
            self._places.close()

    async def _drop(self) -> None:
        def close() -> Any:
            while self._ends:
                self._ends.popitem()[1].close()
            component, self._component = self._component, None
            return component.close() if component is not None else None

        await self._run("unload", close)
        gc.collect()

    async def _run(self, what: str, function: Callable[[], Any], thread: ComponentThread | None = None) -> Any:
        """What ``function`` returns in the component's thread, or another; what it leaves to await is awaited here."""
        await self._masked.wait()

        def work() -> Any:
            with self._at_work(what), ExitsAreErrors():
                return function()

        found = await (thread or self._thread).run(work)
        if not inspect.isawaitable(found):
            return found
        with self._at_work(what), ExitsAreErrors():
            return await found

    @contextmanager
    def _at_work(self, what: str) -> Iterator[None]:
        """Heartbeats say ``what`` while the block runs; weights may arrive while another one does."""
        self._activities.append(what)
        try:
            yield
        finally:
            self._activities.remove(what)

    def _check_ready(self) -> None:
        if self._refusal is not None:
            raise self._refusal


def _listen_on(interface: str | None) -> str:
    """Keep the groups of this process on one interface, and return its address; before anything makes a group."""
    if interface == LOOPBACK:
        own = ""
    else:
        import ray

        own = ray.util.get_node_ip_address()
    name, address = chosen(interface, otherwise=own)
    # Without run.network_interface the user's own variables decide between machines.
    use_interface(name, instead=interface is not None)
    logger.info("process groups listen on %s (%s)", name, address)
    return address


def _log_to(path: Path) -> IO[str]:
    """Log into ``path``, and have this process write its stacks there when it is asked to or crashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    stacks = path.open("a", encoding="utf-8")
    dump_on_signal(stacks)
    return stacks
