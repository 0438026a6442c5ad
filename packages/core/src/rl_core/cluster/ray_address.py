"""The address of a run's Ray cluster, and errors of starting or joining one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rl_ray.errors import RayProblem

from rl_core.errors import EnvironmentProblem


def ray_address(configured: str | None = None) -> str:
    """``run.address``, else ``RAY_ADDRESS``; empty: a Ray of the run's own.

    ``local`` is Ray's word for that. Given to Ray, it would start one that listens on every network interface.
    """
    address = (configured or os.environ.get("RAY_ADDRESS") or "").strip()
    return "" if address == "local" else address


@contextmanager
def ray_problems() -> Iterator[None]:
    """What :mod:`rl_ray` cannot do in the block is a problem of this machine: the run ends with its exit code."""
    try:
        yield
    except RayProblem as problem:
        raise EnvironmentProblem(str(problem)) from problem
