"""A Ray of our own on this machine: ``ray start --head --block`` as a child, on loopback, behind a token of our own.

``ray.init`` would start the same processes, but they would listen on every network interface. One environment variable
has Ray take 127.0.0.1 as this machine's address, in the head and in the driver: what listens then is Ray's own
processes, the driver and the workers, all on loopback. Ray reads it, and whether a token is asked for, when it is
imported, so :func:`driver_environment` comes first. On loopback other users of the machine could connect; the token, in
a folder that only this user can enter, keeps them out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rl_ray.errors import RayProblem
from rl_ray.folder import RayFolder
from rl_ray.ports import free_port

TOKEN = "token"
"""Name of the file with the token, in a folder that only this user can enter."""

_LOOPBACK = "127.0.0.1"
_LOOK_EVERY_S = 0.02
_ROUNDS = 20
_LAST_LINES = 12

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 is this node's address, as on those systems
    "RAY_AUTH_MODE": "token",
    # At SIGTERM the daemons end at once. By default Ray waits for the workers, up to 30 s where the raylet hangs.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end of Ray is an error and starts no other one
    # A thread that waits for a dead control process ends nothing: the processes are watched, and Ray started anew.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
}
_DRIVER_ONLY = ("RAY_gcs_rpc_server_reconnect_timeout_s",)
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_REPLACED = ("RAY_AUTH_TOKEN", "RAY_ADDRESS")
"""Would be preferred to our own token and address."""

_token = ""
"""Of this process: Ray keeps the first one that it has read."""


@dataclass(frozen=True)
class HeadOptions:
    """What a Ray of our own is started with.

    Attributes:
        cpus, gpus: that Ray counts with; ``gpus`` None: no GPUs are asked for, Ray looks itself.
        object_store_bytes: shared memory; None: Ray's choice.
    """

    cpus: int
    gpus: int | None = None
    object_store_bytes: int | None = None

    @property
    def arguments(self) -> list[str]:
        """For ``ray start``."""
        gpus = [] if self.gpus is None else [f"--num-gpus={self.gpus}"]
        store = [] if self.object_store_bytes is None else [f"--object-store-memory={self.object_store_bytes}"]
        return [f"--num-cpus={self.cpus}", *gpus, *store]


def be_quiet() -> None:
    """What every Ray of ours is told, unless the environment says otherwise."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def ray_is_prepared() -> bool:
    """Whether Ray, if this process has imported it, was imported inside a :func:`driver_environment`."""
    return "ray" not in sys.modules or bool(_token)


@contextmanager
def driver_environment(token_file: Path) -> Iterator[None]:
    """For as long as the block lasts, the environment of a driver that joins a Ray on loopback with that token."""
    be_quiet()
    own = {**_PRIVATE, _TOKEN_PATH: str(token_file)}
    before = {name: os.environ.get(name) for name in (*own, *_REPLACED)}
    for name in _REPLACED:
        os.environ.pop(name, None)
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def own_token(folder: Path) -> Path:
    """A file with this process's token that only this user can read."""
    _keep(_token or secrets.token_hex(32))
    file = folder / TOKEN
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as writer:
        writer.write(_token)
    return file


def adopt_token(file: Path) -> None:
    """Take the token of another process's Ray for this one.

    Raises:
        RayProblem: this process has another one.
    """
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise RayProblem(f"the token of the local cluster cannot be read: {file}: {error.strerror}") from error
    if not ray_is_prepared() or _token not in ("", token):
        raise RayProblem(
            "this process has imported Ray before, and cannot join the local cluster with its token\n"
            "    start another process for it"
        )
    _keep(token)


def require_unused(address: str) -> None:
    """Raise RayProblem where this process has joined a Ray on loopback, and so cannot join another one."""
    if _token and "ray" in sys.modules:
        raise RayProblem(
            f"this process has used a private Ray before, and with its settings cannot join {address!r}\n"
            "    start another process for it"
        )


def _keep(token: str) -> None:
    global _token
    _token = token


class Head:
    """Ray's processes on this machine. They end with this process, unless they are ``detached``.

    Args:
        folder: mode 0700, with the token in ``token``.
        number: of the head in this folder; each has a folder of its own.

    Attributes:
        sessions: Ray's temporary folder.
    """

    def __init__(
        self,
        folder: RayFolder,
        options: HeadOptions,
        *,
        number: int = 1,
        detached: bool = False,
    ) -> None:
        self.sessions = folder.path / f"r{number}"
        self._token = folder.path / TOKEN
        self._output = folder.path / f"start{number}.log"
        command = [sys.executable, "-P", str(Path(__file__).with_name("ray_start.py"))]
        command += ["0" if detached else str(os.getpid()), "start", "--head", "--block", "--log-style=record"]
        command += ["--port=0", f"--node-ip-address={_LOOPBACK}"]
        command += [f"--temp-dir={self.sessions}", "--include-dashboard=false", "--disable-usage-stats"]
        command += ["--include-log-monitor=false"]  # it would send what workers print to drivers, which do not ask
        # Where gRPC is installed, Ray starts a client server as well, whose default port may be taken.
        if importlib.util.find_spec("grpc") is not None:
            command += [f"--ray-client-server-port={free_port()}"]
        command += options.arguments
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={name: value for name, value in os.environ.items() if name not in _DRIVER_ONLY},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=folder.locks,  # the folder is in use as long as they live
                start_new_session=True,  # Ctrl-C is for the driver
            )

    @property
    def pid(self) -> int:
        """Of ``ray start``, the parent of the daemons."""
        return self._process.pid

    @property
    def logs(self) -> Path:
        """Where Ray writes its logs, once there is an address."""
        return (self.sessions / "session_latest").resolve() / "logs"

    @property
    def exit_code(self) -> int | None:
        """Of ``ray start``; None while it runs."""
        return self._process.poll()

    def address(self, *, within_s: float) -> str:
        """``127.0.0.1:PORT``, once it is known.

        Raises:
            RayProblem: the processes ended, or there was no address in time.
        """
        file, deadline = self.sessions / "ray_current_cluster", time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.exit_code is not None:
                raise RayProblem(f"`ray start` ended with exit code {self.exit_code}:\n{self._last_words()}")
            with contextlib.suppress(OSError):
                if address := file.read_text().strip():
                    return address
            time.sleep(_LOOK_EVERY_S)
        raise RayProblem(f"Ray timed out: it has not started within {within_s:g} s:\n{self._last_words()}")

    def stop(self) -> None:
        """End all processes at once."""
        end(self.pid, self._token)
        self._process.wait()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._output.read_text(errors="replace").splitlines()
            return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])
        return ""


def members(leader: int, token_file: Path) -> list[psutil.Process]:
    """The processes of a head, whether or not ``ray start``, the leader of their session, still lives.

    Its number may be another session's meanwhile, so each must have the token in its environment, or be one of Ray's
    Python processes, which write over theirs.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) != leader or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process_name(process).startswith("ray::") or _knows(process, token_file):
                found.append(process)
    return found


def _knows(process: psutil.Process, token_file: Path) -> bool:
    return process.environ().get(_TOKEN_PATH) == str(token_file)


def end(leader: int, token_file: Path) -> None:
    """Kill the processes of a head at once; whatever they still hold is of no use to anybody."""
    for _ in range(_ROUNDS):  # one may start another meanwhile
        left = members(leader, token_file)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_LOOK_EVERY_S)


def process_name(process: psutil.Process) -> str:
    """``raylet``, ``gcs_server``, ``log_monitor.py``: what one of Ray's processes is known as."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return "a process"
    if command and command[0].startswith("ray::"):
        return command[0].split()[0]
    names = [part.rpartition("/")[2] for part in command[:4] if not part.startswith("-")]
    return next((name for name in names if not name.startswith("python")), "a process")
