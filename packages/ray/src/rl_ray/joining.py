"""Joining a Ray and leaving it, with a time limit where Ray itself has none."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

from rl_ray.errors import RayProblem
from rl_ray.loss import in_background

logger = logging.getLogger(__name__)

CLIENT_ATTEMPTS = 3
CLIENT_PAUSE_S = 5.0
LOCAL_ATTEMPTS = 2
"""On a very busy machine one of Ray's processes may be too late for another, once."""

_SHUTDOWN_S = 15.0
"""Of a Ray whose processes are gone: it took 5 s."""


def initialise(options: dict[str, Any], address: str | None, *, patience_s: float) -> None:
    """Start or join Ray.

    Args:
        options: arguments of ``ray.init``.
        address: the cluster to join; None where Ray starts on this machine.
        patience_s: seconds for a Ray client (``ray://``) to join; Ray itself ends the other attempts.

    Raises:
        RayProblem: it did not start, or did not let this process in.
    """
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
                raise RayProblem(start_failure(address, error)) from error
            logger.warning("%s failed, trying again: %s", _doing(address), error)
            if not client:
                ray.shutdown()
            time.sleep(CLIENT_PAUSE_S)
            continue
        if not joined:
            raise RayProblem(
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
    returned = in_background(function)
    done, _ = wait([returned], timeout=max(within_s, 0.0))
    if done:
        returned.result()
    return bool(done)


def check_client(address: str) -> None:
    """Raise :class:`RayProblem` where ``address`` is of a Ray client and ``ray[client]`` is not installed."""
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise RayProblem(
            f"the address {address!r} (run.address or RAY_ADDRESS) needs Ray's client, which is not installed\n"
            "    pip install 'ray[client]'"
        )


def joining_options(address: str) -> dict[str, Any]:
    """Arguments of ``ray.init`` for a process that only drives workers: none of their output, errors of Ray alone."""
    return {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}


def say_where(place: str) -> None:
    """Log Ray's version and where it is."""
    import ray

    logger.info("Ray %s on %s", ray.__version__, place)


def shut_down() -> None:
    """Leave Ray, within a time where its processes are gone."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _returned(ray.shutdown, within_s=_SHUTDOWN_S)


def start_failure(address: str | None, error: Exception) -> str:
    """The message where ``ray.init`` failed with ``error``, and what to type next."""
    if address:
        return (
            f"could not join the Ray cluster at {address!r} (run.address or RAY_ADDRESS): {error}\n"
            f"    check with: ray status --address {address}"
        )
    return f"could not start Ray on this machine: {error}\n    run: rl doctor"


def own_node() -> str | None:
    """The Ray node this process runs on; None for a Ray client, whose machine need not be part of the cluster."""
    import ray

    return None if ray.util.client.ray.is_connected() else ray.get_runtime_context().get_node_id()
