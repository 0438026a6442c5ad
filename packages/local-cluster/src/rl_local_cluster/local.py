"""A Ray on this machine that runs join one after another: ``rl cluster start|status|stop``, ``run.address: cluster``.

It is what a run without an address starts for itself (:mod:`rl_ray.head`), but detached. Where it is stands in
a file in the user's state folder, one for each machine; its token is in its own folder, which only this user can enter.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rl_core.cluster.named import joinable
from rl_core.cluster.ray_address import ray_problems
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_ray import head
from rl_ray.folder import RayFolder, in_use, is_ray_folder, remove_folder
from rl_ray.head import Head, HeadOptions

NAME = "cluster"
"""As an address: the cluster that ``rl cluster start`` has started."""

OBJECT_STORE_BYTES_CPU = 2**30
"""Shared memory of a cluster without GPUs: for several runs."""

_START_S = 120.0
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class LocalCluster:
    """A local cluster that runs.

    Attributes:
        address: ``127.0.0.1:PORT``; empty while it starts.
        folder: with its token and Ray's session.
        pid: of ``ray start``, the leader of its session.
        started: when, in seconds since 1970.
    """

    address: str
    folder: str
    pid: int
    started: float

    @property
    def token(self) -> Path:
        """The file with its token."""
        return Path(self.folder) / head.TOKEN

    @property
    def processes(self) -> list[tuple[int, str]]:
        """``(pid, name)`` of its processes."""
        return [(process.pid, head.process_name(process)) for process in head.members(self.pid, self.token)]


def find() -> LocalCluster | None:
    """The local cluster of this user, if one runs."""
    cluster = _recorded()
    return cluster if cluster is not None and cluster.address and in_use(Path(cluster.folder)) else None


def _recorded() -> LocalCluster | None:
    """The cluster that was started last, whether or not it runs."""
    file = _file()
    try:
        # Without waiting, where it is a pipe.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as reader:
            found = json.loads(reader.read(_MOST_BYTES) or b"")
        cluster = LocalCluster(**found)
        kinds = (("address", str), ("folder", str), ("pid", int))
        if not all(isinstance(getattr(cluster, name), kind) for name, kind in kinds):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EnvironmentProblem(f"{file} cannot be read: {error.strerror}\n    set XDG_STATE_HOME") from error
    except (ValueError, TypeError):
        return None
    # All that it names is removed at its end, so it names nothing else.
    return cluster if is_ray_folder(Path(cluster.folder)) else None


def start(options: HeadOptions) -> LocalCluster:
    """Start the local cluster; it outlives this process.

    Raises:
        ConfigError: there is one already.
        EnvironmentProblem: it did not start.
    """
    _make_state_folder()
    with _alone():
        running, recorded = find(), _recorded()
        if running is not None:
            raise ConfigError(
                f"a local cluster runs already, at {running.address}\n"
                f"    use it:  rl run CONFIG run.address={NAME}\n    or end it:  rl cluster stop"
            )
        if recorded is not None:
            _end(recorded)
        return _start(options)


def _start(options: HeadOptions) -> LocalCluster:
    with ray_problems():
        return _started(options)


def _started(options: HeadOptions) -> LocalCluster:
    folder = RayFolder()
    with head.driver_environment(head.own_token(folder.path)):
        started = Head(folder, options, detached=True)
        try:
            cluster = LocalCluster("", str(folder.path), started.pid, time.time())
            _record(cluster)  # so that it is found, and ended, where this process is killed
            cluster = replace(cluster, address=started.address(within_s=_START_S))
            with _joined(cluster.address):  # everything is there now
                pass
            _record(cluster)
        except BaseException:
            started.stop()
            folder.remove()
            _file().unlink(missing_ok=True)
            raise
    return cluster


def stop() -> LocalCluster | None:
    """End the local cluster with all that runs on it, and remove its folder; None where there is none."""
    if _recorded() is None:
        return None
    with _alone():
        cluster, running = _recorded(), find()
        if cluster is not None:
            _end(cluster)
        return running


def _end(cluster: LocalCluster) -> None:
    """End what is left of it: where one of its processes was killed, others may live on."""
    head.end(cluster.pid, cluster.token)
    remove_folder(Path(cluster.folder))
    _file().unlink(missing_ok=True)


def named(name: str) -> LocalCluster | None:
    """The local cluster, where ``name`` means it; None for another name.

    Raises:
        EnvironmentProblem: it means the local cluster, and there is none.
    """
    if name != NAME:
        return None
    if (cluster := find()) is None:
        raise EnvironmentProblem(
            f"run.address (or RAY_ADDRESS) is {NAME!r}, but no local cluster runs\n    start one with: rl cluster start"
        )
    return cluster


def resources(cluster: LocalCluster) -> tuple[int, dict[str, float], dict[str, float]]:
    """``(nodes, resources in all, resources that are free)``; joins it for a moment."""
    with joinable(NAME, {NAME: cluster}.get), _joined(cluster.address):
        import ray

        alive = sum(node["Alive"] for node in ray.nodes())
        return alive, ray.cluster_resources(), ray.available_resources()


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "rl"
    except RuntimeError as error:
        raise EnvironmentProblem("this user has no home folder\n    set HOME or XDG_STATE_HOME") from error


def _file() -> Path:
    """The record; machines may share the home folder, and each has its own cluster."""
    return _state_folder() / f"cluster-{socket.gethostname()}.json"


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process starts or stops the local cluster, and keep others out."""
    file = _file().with_suffix(".lock")
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise EnvironmentProblem(f"{file} cannot be locked: {error.strerror}\n    set XDG_STATE_HOME") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _make_state_folder() -> None:
    folder = _state_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise EnvironmentProblem(f"{folder} is no folder of this user\n    remove it, or set XDG_STATE_HOME")
        folder.chmod(0o700)
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written: {error.strerror}\n    set XDG_STATE_HOME") from error


def _record(cluster: LocalCluster) -> None:
    file = _file()
    new = file.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "w") as writer:
        writer.write(json.dumps(asdict(cluster)) + "\n")
    os.replace(new, file)
