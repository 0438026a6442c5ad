"""A Ray session for one run: joins an existing cluster or starts a Ray of our own, watches it, and cleans up."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from rl_ray import head
from rl_ray.errors import RayProblem
from rl_ray.folder import RayFolder
from rl_ray.head import Head, HeadOptions
from rl_ray.joining import (
    LOCAL_ATTEMPTS,
    check_client,
    initialise,
    joining_options,
    own_node,
    say_where,
    shut_down,
    start_failure,
)
from rl_ray.logs import keep_logs, link_logs
from rl_ray.loss import NodeWatch, ProcessWatch, RayLoss
from rl_ray.reach import wait_for_answer

from rl_core.cluster.failures import ray_lost
from rl_core.cluster.named import joinable
from rl_core.cluster.ray_address import ray_address, ray_problems
from rl_core.cluster.resources import RayNeeds, usable_cpus
from rl_core.contracts.cluster import NamedCluster
from rl_core.errors import EnvironmentProblem
from rl_core.machine import gpu_count

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES_CPU = 256 * 2**20
"""Shared memory of a local CPU-only session; batches and weights of laptop-size models fit many times."""


class RaySession(Protocol):
    """The Ray of a run.

    Attributes:
        loss: what has become of it.
    """

    loss: RayLoss

    def join(self) -> None:
        """Connect this process; returns when workers can be started.

        Raises:
            EnvironmentProblem: Ray did not start, or did not let this process in.
        """
        ...

    def restart(self) -> None:
        """Start it anew after a loss.

        Raises:
            WorkerDied: it is not ours to start.
            EnvironmentProblem: as for :meth:`join`.
        """
        ...

    def close(self) -> None:
        """Leave it, and end it if it is ours."""
        ...


@contextmanager
def ray_session(
    needs: RayNeeds, logs: Path, *, on_loss: Callable[[str], None] = lambda reason: None
) -> Iterator[RaySession]:
    """The configured cluster, one that this process has joined already, or a Ray of our own while the block lasts.

    It begins to start at once, so that Ray is imported with the settings it needs: whatever imports it comes later.
    :meth:`RaySession.join` waits for it.

    Args:
        on_loss: called, from another thread, where a Ray is lost that cannot be started again: the process may end
            any time.

    The logs of a Ray of our own are linked at ``logs/ray`` while it runs and copied there when it stops.
    """
    address = ray_address(needs.address)
    session: RaySession
    with ExitStack() as stack:
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            session = _Given(on_loss)
        elif address:
            address, cluster = stack.enter_context(joinable(address))
            session = _Joined(address, cluster, within_s=needs.start_s, on_loss=on_loss)
        elif head.ray_is_prepared():
            session = OwnRay(head_options(needs), logs, within_s=needs.start_s)
        else:
            session = _Plain(head_options(needs), logs, on_loss=on_loss)
        stack.callback(session.close)
        yield session


class _Given:
    """A Ray that this process has initialised itself; it is left running."""

    def __init__(self, on_loss: Callable[[str], None]) -> None:
        self.loss = RayLoss(ray_lost)
        self._on_loss = on_loss
        self._watch: NodeWatch | None = None

    def join(self) -> None:
        self._watch = NodeWatch(self.loss, node_id=own_node(), on_loss=self._on_loss)

    def restart(self) -> None:
        raise self.loss.error

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


class _Joined(_Given):
    """A cluster that was there before."""

    def __init__(
        self, address: str, cluster: NamedCluster | None, *, within_s: float, on_loss: Callable[[str], None]
    ) -> None:
        super().__init__(on_loss)
        self._address = address
        self._cluster = cluster
        self._processes: ProcessWatch | None = None
        self._within_s = within_s

    def join(self) -> None:
        head.be_quiet()
        with ray_problems():
            check_client(self._address)
            wait_for_answer(self._address, within_s=self._within_s)
            initialise(joining_options(self._address), self._address, patience_s=self._within_s)
        say_where(self._address)
        super().join()
        if self._cluster is not None:
            self._processes = ProcessWatch(self.loss, self._cluster.pid)

    def close(self) -> None:
        super().close()
        if self._processes is not None:
            self._processes.close()
        shut_down()


class OwnRay:
    """A :class:`RaySession` on loopback, behind a token, whose processes end with this one.

    See :mod:`rl_ray.head`.

    Args:
        logs: folder in which Ray's logs are kept as ``ray``; None: nowhere.
        within_s: longest that it may take to start.
    """

    def __init__(self, options: HeadOptions, logs: Path | None, *, within_s: float) -> None:
        self.loss = RayLoss(ray_lost)
        self._options = options
        self._logs = logs
        self._within_s = within_s
        self._linked = False
        self._started = 0
        self._watch: ProcessWatch | None = None
        with ExitStack() as stack, ray_problems():
            self._folder = RayFolder()
            stack.callback(self._folder.remove)
            stack.enter_context(head.driver_environment(head.own_token(self._folder.path)))
            self._head = self._start()
            self._stack = stack.pop_all()

    def join(self) -> None:
        import ray

        for attempt in range(1, LOCAL_ATTEMPTS + 1):
            try:
                address = self._head.address(within_s=self._within_s)
                ray.init(**joining_options(address))  # in the main thread: it takes SIGTERM
                break
            except Exception as error:
                busy = isinstance(error, RayProblem) or "timed out" in str(error).lower()
                if attempt == LOCAL_ATTEMPTS or not busy:
                    raise EnvironmentProblem(start_failure(None, error)) from error
                logger.warning("starting Ray failed, trying again: %s", error)
                shut_down()
                self._head.stop()
                self._head = self._start()
        self._watch = ProcessWatch(self.loss, self._head.pid)
        if self._logs is not None:
            link_logs(self._head.logs, self._logs)
            self._linked = True
        say_where("this machine")

    def restart(self) -> None:
        """Another head starts while this process leaves the one that is lost, which takes seconds."""
        lost, self._head = self._head, self._start()
        self._leave(lost)
        self.loss.clear()
        self.join()

    def close(self) -> None:
        try:
            self._leave(self._head)
        finally:
            self._stack.close()

    def _start(self) -> Head:
        self._started += 1
        return Head(self._folder, self._options, number=self._started)

    def _leave(self, left: Head) -> None:
        if self._watch is not None:
            self._watch.close()
        logs = left.logs
        if self.loss.reason:
            left.stop()
        shut_down()
        left.stop()
        if self._linked and self._logs is not None:
            keep_logs(logs, self._logs)
            self._linked = False


class _Plain(_Given):
    """``ray.init`` as it is, where Ray was imported before this process could be prepared for a Ray of our own."""

    def __init__(self, options: HeadOptions, logs: Path, *, on_loss: Callable[[str], None]) -> None:
        super().__init__(on_loss)
        self._options = options
        self._logs = logs
        with ray_problems():
            self._folder = RayFolder()

    def join(self) -> None:
        logger.warning(
            "Ray was imported in this process before the run started it, so it listens on every network interface of "
            "this machine, protected by its token alone; to have a private one, import ray inside functions only"
        )
        head.be_quiet()
        options: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": self._options.cpus}
        if self._options.gpus is not None:
            options["num_gpus"] = self._options.gpus
        if self._options.object_store_bytes is not None:
            options["object_store_memory"] = self._options.object_store_bytes
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(self._folder.path)
        try:
            with ray_problems():
                initialise(options | joining_options("local"), None, patience_s=0.0)
        finally:
            if before is None:
                del os.environ["RAY_TMPDIR"]
            else:
                os.environ["RAY_TMPDIR"] = before
        link_logs(self._session_logs, self._logs)
        say_where("this machine")
        super().join()

    @property
    def _session_logs(self) -> Path:
        return (self._folder.path / "ray" / "session_latest").resolve() / "logs"

    def close(self) -> None:
        super().close()
        logs = self._session_logs
        shut_down()
        if logs.is_dir():
            keep_logs(logs, self._logs)
        self._folder.remove()


def head_options(needs: RayNeeds) -> HeadOptions:
    """What a Ray of this machine alone has."""
    workers = max(len(r.bundles) for r in needs.workers)
    cpus = max(needs.cpus or usable_cpus(), *(int(sum(b["CPU"] for b in r.bundles)) for r in needs.workers))
    if not any(r.gpus for r in needs.workers):
        return HeadOptions(max(cpus, workers), object_store_bytes=OBJECT_STORE_BYTES_CPU)
    present = gpu_count()
    return HeadOptions(max(cpus, workers), gpus=max(r.local_gpus(present) for r in needs.workers))
