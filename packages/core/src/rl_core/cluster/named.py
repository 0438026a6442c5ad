"""Clusters that have a name: plugins say where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rl_ray import head

from rl_core.cluster.ray_address import ray_problems
from rl_core.contracts.cluster import NamedCluster
from rl_core.discovery.lookup import published
from rl_core.discovery.registry import load_registry
from rl_core.errors import EnvironmentProblem, RLError


def find_cluster(name: str) -> NamedCluster | None:
    """The cluster that a plugin knows by ``name``; None where nobody does.

    Raises:
        EnvironmentProblem: a plugin knows it, and it does not run.
    """
    for outcome in load_registry().call("find_cluster", name=name):
        if isinstance(outcome.error, RLError):
            raise outcome.error
        if outcome.error is not None:
            raise EnvironmentProblem(
                f"package {outcome.package}: its hook find_cluster failed: {outcome.error}\n"
                f"    this is a fault of the package; try: pip install --upgrade {outcome.package}"
            ) from outcome.error
        if outcome.result is not None:
            return outcome.result
    if package := published()["cluster"].get(name):
        raise EnvironmentProblem(
            f"the cluster {name!r} (run.address or RAY_ADDRESS) is known to {package}, which is not installed\n"
            f"    pip install {package}"
        )
    return None


@contextmanager
def joinable(
    address: str, find: Callable[[str], NamedCluster | None] = find_cluster
) -> Iterator[tuple[str, NamedCluster | None]]:
    """An address for ``ray.init``, and for as long as the block lasts the environment that joining it needs.

    With it the cluster, where the address is a cluster's name.

    Raises:
        EnvironmentProblem: there is none of that name, or this process cannot join it any more.
    """
    cluster = None if ":" in address or address in ("auto", "local") else find(address)
    with ray_problems():
        if cluster is None:
            head.require_unused(address)
        else:
            head.adopt_token(cluster.token)
    if cluster is None:
        yield address, None
        return
    with head.driver_environment(cluster.token):
        yield cluster.address, cluster
