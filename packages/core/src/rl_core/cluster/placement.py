"""Room in the cluster: a placement group for a run's workers, waited for as long as the user allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from rl_core.cluster.resources import Resources
from rl_core.errors import EnvironmentProblem, Interrupted

logger = logging.getLogger("rl")

_QUIET_S = 5.0
"""A group usually stands at once; after this the user is told what is missing."""

_SLICE_S = 1.0
_REMIND_S = 60.0


def reserve(resources: Resources, *, wait_s: float, stopping: Callable[[], bool]) -> Any:
    """A placement group with a bundle per worker.

    Raises:
        EnvironmentProblem: there was no room within ``wait_s``.
        Interrupted: ``stopping()`` became true while waiting.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    started = time.monotonic()
    group = placement_group(resources.bundles, strategy="SPREAD" if resources.nodes > 1 else "PACK")
    try:
        if not group.wait(timeout_seconds=min(_QUIET_S, wait_s)):
            _wait(group, resources, started=started, wait_s=wait_s, stopping=stopping)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def machines_of(group: Any, count: int) -> list[str]:
    """The machine that each bundle is on."""
    from ray.util import placement_group_table

    machines: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return [machines[index] for index in range(count)]


def bundles_in_order(machines: Sequence[str], ranks: int, *, per_machine: int) -> list[int]:
    """Bundle indices machine by machine, so that neighbouring ranks, which talk most, share one.

    The first ``ranks`` are for training: ``per_machine`` (0: any number) of each machine while there are enough,
    then what is left of them. Generators have the others.
    """
    by_machine = sorted(range(len(machines)), key=lambda index: (machines[index], index))
    first: list[int] = []
    for machine in sorted(set(machines)):
        here = [index for index in by_machine if machines[index] == machine]
        if not per_machine or len(here) >= per_machine:
            first += here[: per_machine or None]
    first = first[:ranks]
    return first + [index for index in by_machine if index not in first]


def machine_count() -> int:
    """Machines that the cluster has now."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def room_for(needs: dict[str, float]) -> int:
    """How many workers of these needs fit into what is free in the cluster."""
    import ray

    free = ray.available_resources()
    return int(min(free.get(name, 0.0) // amount for name, amount in needs.items()))


def _wait(group: Any, resources: Resources, *, started: float, wait_s: float, stopping: Callable[[], bool]) -> None:
    need, reminded = total(resources), 0.0
    while (left := started + wait_s - time.monotonic()) > 0:
        if time.monotonic() - reminded > _REMIND_S:
            reminded = time.monotonic()
            logger.warning(
                "waiting up to %.0f s for room: the workers need %s, the cluster has %s; add machines, or free some",
                left,
                need,
                _have(),
            )
        if group.wait(timeout_seconds=min(_SLICE_S, left)):
            logger.info("there is room now: the cluster has %s", _have())
            return
        if stopping():
            raise Interrupted("stopped while waiting for machines\n    continue with `rl resume` when they are there")
    raise EnvironmentProblem(
        f"no room for the workers after {wait_s:.0f} s: they need {need}, the cluster has {_have()}\n"
        "    lower backend.parallel or generator.replicas, or add machines (run.wait_for_resources waits longer)"
    )


def _have() -> dict[str, float]:
    import ray

    return {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}


def total(resources: Resources) -> dict[str, float]:
    """All bundles together."""
    added: dict[str, float] = {}
    for bundle in resources.bundles:
        for key, value in bundle.items():
            added[key] = added.get(key, 0.0) + value
    return added
