"""A Ray session for one run: joins an existing cluster or starts a local one, and cleans up after itself."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.cluster.forkserver import instead_of_python
from rl_core.cluster.reach import wait_for_answer
from rl_core.cluster.resources import largest, usable_cpus
from rl_core.cluster.temporary import ray_folder
from rl_core.config.machine import gpu_count
from rl_core.config.redaction import copy_masked
from rl_core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES_CPU = 256 * 2**20
"""Shared memory of a local CPU-only session; batches and weights of laptop-size models fit many times."""

CLIENT_ATTEMPTS = 3
CLIENT_PAUSE_S = 5.0
LOCAL_ATTEMPTS = 2
"""On a very busy machine one of Ray's processes may be too late for another, once."""

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}


@contextmanager
def ray_session(config: RunConfig, logs: Path, python: str | None = None) -> Iterator[None]:
    """Connect to the configured cluster, or start Ray on this machine for as long as the block lasts.

    Args:
        python: what a local Ray starts workers with (see :mod:`rl_core.cluster.forkserver`); else this interpreter.

    Ray's own logs are linked at ``logs/ray`` while it runs and copied there when it stops. A Ray
    that is already initialised in this process is used and left running.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    run = config.stages[0].run
    address = run.address or os.environ.get("RAY_ADDRESS")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address:
            _check_client(address)
            options["address"] = address
            wait_for_answer(address, within_s=run.start_timeout_s)
        else:
            options |= _local_options(config)
            if (folder := stack.enter_context(ray_folder())) is not None:
                options["_temp_dir"] = folder
        with instead_of_python(python):
            _initialise(options, address, patience_s=run.start_timeout_s)
        logger.info("Ray %s on %s", ray.__version__, address or "this machine")
        session_logs = _link_logs(logs) if not address else None
        try:
            yield
        finally:
            ray.shutdown()
            if session_logs is not None:
                _keep_logs(session_logs, logs / "ray")


def _initialise(options: dict[str, Any], address: str | None, *, patience_s: float) -> None:
    """Start or join Ray, within ``patience_s`` where a Ray client joins; Ray itself ends the other attempts."""
    import ray

    client = address is not None and address.startswith("ray://")
    deadline = time.monotonic() + patience_s
    # A Ray client's server on a busy head node may fail to start, for example when its port is taken meanwhile.
    attempts = CLIENT_ATTEMPTS if client else LOCAL_ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            if client:
                joined = _returned(lambda: ray.init(**options), within_s=deadline - time.monotonic())
            else:
                ray.init(**options)  # in the main thread: it takes SIGTERM
                joined = True
        except Exception as error:
            if attempt == attempts or not (client or "timed out" in str(error).lower()):
                raise EnvironmentProblem(_start_failure(address, error)) from error
            logger.warning("%s failed, trying again: %s", _doing(address), error)
            if not client:
                ray.shutdown()
            time.sleep(CLIENT_PAUSE_S)
            continue
        if not joined:
            raise EnvironmentProblem(
                f"the Ray cluster at {address!r} (run.address or RAY_ADDRESS) has not let this client in for "
                f"{patience_s:g} s (run.start_timeout_s); the server that it starts for a client may have died\n"
                "    run the same command again; why it died is on the head node, in "
                "/tmp/ray/session_latest/logs/ray_client_server*.err"
            )
        return


def _doing(address: str | None) -> str:
    return f"joining the Ray cluster at {address}" if address else "starting Ray"


def _returned(function: Callable[[], Any], *, within_s: float) -> bool:
    """Whether ``function`` returns in time; it is called in a thread, which is left behind where it does not.

    Raises:
        Exception: what ``function`` raised.
    """
    returned: Future[Any] = Future()

    def call() -> None:
        try:
            returned.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            returned.set_exception(error)

    threading.Thread(target=call, name="joining Ray", daemon=True).start()
    done, _ = wait([returned], timeout=max(within_s, 0.0))
    if done:
        returned.result()
    return bool(done)


def _check_client(address: str) -> None:
    """``ray://`` addresses need what ``ray[client]`` installs."""
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise EnvironmentProblem(
            f"the address {address!r} (run.address or RAY_ADDRESS) needs Ray's client, which is not installed\n"
            "    pip install 'ray[client]'"
        )


def _local_options(config: RunConfig) -> dict[str, Any]:
    needed = largest(config)
    workers = max(len(r.bundles) for r in needed)
    cpus = max(config.stages[0].run.cpus or usable_cpus(), *(int(sum(b["CPU"] for b in r.bundles)) for r in needed))
    # "local": never join a cluster that happens to run on this machine.
    options: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": max(cpus, workers)}
    if any(r.gpus for r in needed):
        present = gpu_count()
        options["num_gpus"] = max(r.local_gpus(present) for r in needed)
    else:
        options["object_store_memory"] = OBJECT_STORE_BYTES_CPU
    return options


def _start_failure(address: str | None, error: Exception) -> str:
    if address:
        return (
            f"could not join the Ray cluster at {address!r} (run.address or RAY_ADDRESS): {error}\n"
            f"    check with: ray status --address {address}"
        )
    return f"could not start Ray on this machine: {error}\n    run: rl doctor"


def _link_logs(logs: Path) -> Path | None:
    """Make Ray's session logs reachable from the run directory; returns where they are."""
    from ray._private.worker import _global_node

    if _global_node is None:
        return None
    source = Path(_global_node.get_logs_dir_path()).resolve()
    link = logs / "ray"
    try:
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            shutil.move(link, logs / f"ray-{int(link.stat().st_mtime)}")
        link.symlink_to(source, target_is_directory=True)
    except OSError as error:
        logger.warning("cannot link Ray's logs into %s: %s (they are in %s)", logs, error, source)
    return source


def _keep_logs(source: Path, target: Path) -> None:
    try:
        if target.is_symlink():
            target.unlink()
        left_out = shutil.ignore_patterns("old")
        shutil.copytree(source, target, ignore=left_out, copy_function=_copy_masked, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        logger.warning("cannot copy Ray's logs from %s to %s: %s", source, target, error)


def _copy_masked(source: str, target: str) -> str:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        copy_masked(reader, writer)
    return target
