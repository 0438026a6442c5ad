"""The rule that a component can be sent to a Ray worker: its config arrives unchanged and builds it there."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from pydantic import BaseModel
from rl_core.cluster.named import joinable
from rl_core.cluster.ray_address import ray_address
from rl_core.cluster.session import OBJECT_STORE_BYTES_CPU, OwnRay
from rl_core.component import Component
from rl_core.discovery.status import describe
from rl_ray import head
from rl_ray.head import HeadOptions

TIMEOUT_S = 600.0


@contextmanager
def ray_for_checks() -> Iterator[None]:
    """Ray as it is: initialised in this process, or the cluster of RAY_ADDRESS, or one of our own for the block."""
    initialised = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    address = ray_address()
    if not initialised and not address and head.ray_is_prepared():
        # Processors are what Ray counts with, not what it takes: a run needs one per worker.
        own = OwnRay(HeadOptions(8, object_store_bytes=OBJECT_STORE_BYTES_CPU), None, within_s=TIMEOUT_S)
        with closing(own):
            own.join()
            yield
        return
    import ray

    if initialised:
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": 40}
    if not address:
        head.be_quiet()
        options |= {"num_cpus": 8, "include_dashboard": False, "object_store_memory": 256 * 2**20}
    with joinable(address or "local") as (place, _):
        ray.init(**options, address=place)
        try:
            yield
        finally:
            ray.shutdown()


def check_arrival(components: Sequence[tuple[str, Component, BaseModel]]) -> None:
    """Send configs to one Ray worker, which reads them and builds each component twice.

    Args:
        components: ``(label for messages, what the plugin registered, config)`` of each.
    """
    pickled = []
    for label, component, config in components:
        try:
            pickled.append((component, pickle.dumps(config)))
        except Exception as error:
            raise AssertionError(f"{label}: its config cannot be pickled for a worker: {describe(error)}") from error
    import ray

    with ray_for_checks():
        # No CPU of its own: it runs whatever else the cluster is doing.
        unpack = ray.remote(_unpack).options(num_cpus=0, max_retries=0)
        answers = ray.get(unpack.remote(list(sys.path), pickled), timeout=TIMEOUT_S)
    for (label, _, config), (problem, arrived) in zip(components, answers, strict=True):
        if problem:
            raise AssertionError(f"{label}: in a Ray worker {problem}")
        if arrived != config.model_dump_json():
            raise AssertionError(f"{label}: its config arrives changed in a Ray worker: {arrived}")


def _unpack(paths: list[str], pickled: list[tuple[Component, bytes]]) -> list[tuple[str, str]]:
    """Runs in the worker. Returns ``(what went wrong, the config as JSON)`` for each."""
    # What the driver can import, the worker can: packages in editable mode, or under test.
    sys.path.extend(path for path in paths if path not in sys.path)
    from rl_core.discovery.references import resolve_reference

    answers = []
    for component, data in pickled:
        doing = "its config cannot be read"
        try:
            config = pickle.loads(data)
            doing = "building it fails"
            factory: Any = resolve_reference(component.factory)
            for _ in range(2):
                built = factory(config)
                if component.kind == "reward" and hasattr(built, "close"):
                    built.close()
                doing = "building it a second time fails"
            answers.append(("", config.model_dump_json()))
        except Exception as error:  # noqa: BLE001 - the plugin boundary: the driver names it
            answers.append((f"{doing}: {describe(error)}", ""))
    return answers
