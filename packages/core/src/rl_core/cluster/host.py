"""The process behind every worker: a Ray actor that hosts one component at a time.

It knows no kind of component. A thread of it sends heartbeats while another one computes. Hosts
outlive stages: a stage unloads what it built and the next one builds its own in the same, already warm
process.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from rl_core.cluster.examination import dump_on_signal
from rl_core.cluster.heartbeat import Pulse
from rl_core.cluster.lines import Address
from rl_core.cluster.meeting_places import MeetingPlaces
from rl_core.cluster.shared_buckets import Described, SharedBuckets
from rl_core.cluster.work_thread import WorkThread, in_work_thread
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.profiling import Profiles
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import RLError
from rl_core.io.appending import LogFile
from rl_core.network import LOOPBACK, chosen, use_interface
from rl_core.secrets.redaction import RedactingFormatter, mask_streams, remember_secrets

logger = logging.getLogger(__name__)

_LOADING = frozenset({"load"})
"""Methods that may hold Python's lock for long."""


class Host:
    """Runs inside a Ray actor."""

    def __init__(
        self,
        name: str,
        manifest: dict[str, str],
        logs: str | None,
        threads: int,
        *,
        umask: int | None = None,
        interface: str | None = LOOPBACK,
    ) -> None:
        if umask is not None:  # the run directory's, not that of whoever started this machine's Ray
            os.umask(umask)
        # Before anything imports torch: OpenMP reads these once.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._name = name
        self._activities = [("starting", True)]  # what, and whether it may hold Python's lock for long
        mask_streams()
        self._log = _log_to(Path(logs) / f"{name}.log") if logs else None
        logger.info("%s: pid %d on %s", name, os.getpid(), socket.gethostname())
        self._pulse = _pulse(self._activity)
        self._component: Any = None
        self._ends: dict[str, Any] = {}
        self._shared: SharedBuckets | None = None
        self._work = WorkThread(lambda method, args: getattr(self, method)(*args))
        self._refusal: RLError | None = None
        self._places = MeetingPlaces()
        self._own_address = ""
        from rl_core.discovery.registry import load_registry

        self._registry = load_registry()
        try:
            self._registry.check_manifest(manifest)
            self._own_address = _listen_on(interface)
        except RLError as error:
            # Raised by the first call: as it is, where an actor that cannot be built only leaves a text.
            self._refusal = error
        self._done(self._activities[0])

    def node(self) -> str:
        """Id of the Ray node that this worker is on."""
        import ray

        self._check_ready()
        return str(ray.get_runtime_context().get_node_id())

    def meeting_place(self, purpose: str, one_machine: bool) -> Rendezvous:
        """A place for a new group of which this worker is the first rank; see :class:`MeetingPlaces`."""
        self._check_ready()
        return self._places.open(purpose, address=self._own_address, one_machine=one_machine)

    def remember_secrets(self, values: frozenset[str]) -> None:
        """Mask ``values`` in the log and in what is printed here. The call before all others."""
        remember_secrets(values)

    def pid(self) -> int:
        """Process id, for messages and tests."""
        return os.getpid()

    def open_line(self, node: str) -> Address | None:
        """Where a driver on Ray's ``node`` may connect; None where that is another one than this."""
        import ray

        self._check_ready()
        return self._work.open_line() if ray.get_runtime_context().get_node_id() == node else None

    def warm(self, factory: str) -> None:
        """Import what a later :meth:`build` needs, while others are at work."""
        with self._at_work("importing", starting=True):
            self._registry.resolve(factory)

    @in_work_thread
    def build(self, factory: str, config: Any, context: WorkerContext, kind: str) -> Any:
        """Create the component and ``setup`` it; returns what ``setup`` returns."""
        self._check_ready()
        self._drop()
        with self._at_work(f"building {factory}", starting=True):
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

    @in_work_thread
    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the hosted component."""
        with self._at_work(method, starting=method in _LOADING):
            return getattr(self._component, method)(*args)

    @in_work_thread
    def call_each(self, method: str, buckets: list[Any], *args: Any) -> Any:
        """Like :meth:`call`, with object references inside ``buckets`` fetched here, not by the caller."""
        return self.call_each_beside(method, buckets, *args)

    def call_each_beside(self, method: str, buckets: list[Any], *args: Any) -> Any:
        """The same beside what the component is doing."""
        import ray

        with self._at_work(method):
            return getattr(self._component, method)(ray.get(buckets), *args)

    @in_work_thread
    def share(self, method: str, keep: bool, *args: Any) -> Described | None:
        """Iterate a method's buckets to the end; where ``keep``, put them into memory that others here can read."""
        with self._at_work(method):
            buckets = getattr(self._component, method)(*args)
            if not keep:
                deque(buckets, maxlen=0)
                return None
            if self._shared is None:
                self._shared = SharedBuckets()
            self._shared.fill(buckets)
            return self._shared.described

    def unshare(self) -> None:
        """All have read it: give much memory back, and keep little for the next time."""
        if self._shared is not None and not self._shared.worth_keeping:
            self._shared = None

    @in_work_thread
    def call_shared(self, method: str, buckets: Described, *args: Any) -> Any:
        """Like :meth:`call`, with what another worker of this machine shares."""
        with self._at_work(method):
            return getattr(self._component, method)(buckets.read(), *args)

    @in_work_thread
    def stream(self, method: str, keep: bool, *args: Any) -> list[Any]:
        """Iterate a method's results to the end; put each into the object store if ``keep``."""
        import ray

        references = []
        with self._at_work(method):
            for item in getattr(self._component, method)(*args):
                if keep:
                    references.append(ray.put(item))
        return references

    @in_work_thread
    def start_profile(self, folder: str | None) -> bool:
        """Have the component profile itself, with a trace into ``folder`` if given; False where it cannot."""
        if not isinstance(self._component, Profiles):
            return False
        with self._at_work("start_profile"):
            self._component.start_profile(f"{folder}/{self._name}.trace.json.gz" if folder else None)
        return True

    @in_work_thread
    def stop_profile(self) -> dict[str, float]:
        """Seconds by section since :meth:`start_profile`; none where the component cannot tell."""
        if not isinstance(self._component, Profiles):
            return {}
        with self._at_work("stop_profile"):
            return dict(self._component.stop_profile())

    @in_work_thread
    def transport(self, end: str, method: str, *args: Any) -> Any:
        """Call a method of this worker's end of a weight transport (a reference to its class), made at first use."""
        return self.transport_beside(end, method, *args)

    def transport_beside(self, end: str, method: str, *args: Any) -> Any:
        """The same beside what the component is doing."""
        with self._at_work(method):
            if end not in self._ends:
                self._ends[end] = self._registry.resolve(end)(self._component)
            return getattr(self._ends[end], method)(*args)

    @in_work_thread
    def unload(self) -> None:
        """Drop the component, so that the process can host another."""
        try:
            self._drop()
        finally:
            self._places.close()

    def _drop(self) -> None:
        self._shared = None
        while self._ends:
            self._ends.popitem()[1].close()
        if self._component is not None:
            self._component.close()
            self._component = None
            gc.collect()

    @contextmanager
    def _at_work(self, what: str, *, starting: bool = False) -> Iterator[None]:
        """Heartbeats say ``what`` while the block runs; weights may arrive while another one does."""
        activity = (what, starting)
        self._activities.append(activity)
        try:
            yield
        finally:
            self._done(activity)

    def _done(self, activity: tuple[str, bool]) -> None:
        self._activities.remove(activity)
        if activity[1]:  # from here on less patience is needed, and the next regular beat may never come
            self._pulse.beat()

    def _activity(self) -> tuple[str, bool]:
        return next(iter(self._activities[-1:]), ("", False))

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


def _pulse(state: Callable[[], tuple[str, bool]]) -> Pulse:
    import ray

    context = ray.get_runtime_context()
    return Pulse(context.get_actor_id() or "", context.get_node_id(), state)
