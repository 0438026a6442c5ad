"""One collector for all loggers: asks every machine of the Ray cluster at an interval, in a thread."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rl_core.training.observers import StepObserver

from rl_system_metrics.machine import Machine

if TYPE_CHECKING:
    from rl_core.training.logger_group import LoggerGroup

logger = logging.getLogger("rl")

ANSWER_S = 10.0
"""A machine that has not answered within this time is left out of a measurement."""
_CLOSE_S = 1.0


class Measurer:
    """The actor on every machine but the driver's."""

    def __init__(self) -> None:
        self._machine = Machine()

    def measure(self) -> tuple[str, dict[str, float]]:
        """Host name and measurements."""
        return self._machine.name, self._machine.measure()


class Machines:
    """The driver's machine, measured here, and an actor on each other one; machines may come and go."""

    def __init__(self) -> None:
        self._own = Machine()
        self._actors: dict[str, Any] = {}  # by node id
        self._here = _own_node()

    def measure(self) -> dict[str, dict[str, float]]:
        """Host name (with the node's id where two have the same) → metric → value."""
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        self._actors = {node: self._actors.get(node) or _actor(node) for node in alive if node != self._here}
        asked = {actor.measure.remote(): node for node, actor in self._actors.items()}
        found = {self._own.name: self._own.measure()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        for answer in ready:
            node = asked[answer]
            try:
                name, measured = ray.get(answer, timeout=ANSWER_S)
            except ray.exceptions.RayError:
                del self._actors[node]  # the machine is gone, or the actor: another one next time
                continue
            found[f"{name}-{node[:6]}" if name in found else name] = measured
        return found


class Collector(StepObserver):
    """Gives the loggers what it measures, from the first step of a stage to its end."""

    def __init__(self, loggers: LoggerGroup, *, every_s: float) -> None:
        self._loggers = loggers
        self._every_s = every_s
        self._step = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="machines", daemon=True)
        self._thread.start()

    def step_begins(self, step: int) -> None:
        self._step = step

    def close(self) -> None:
        """Not waited for long: with a cluster that is gone, the thread may be in a call that does not return."""
        self._ended.set()
        self._thread.join(_CLOSE_S)

    def _collect(self) -> None:
        machines: Machines | None = None
        warned = False
        while not self._ended.is_set():
            try:
                machines = machines or Machines()
                measured = machines.measure()
                if not self._ended.is_set():
                    self._loggers.log_machines(self._step, measured)
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
                if not warned and not self._ended.is_set():
                    logger.warning("machines cannot be measured: %s: %s", type(error).__name__, error)
                    warned = True
            self._ended.wait(self._every_s)


def _own_node() -> str | None:
    try:
        return ray.get_runtime_context().get_node_id()
    except Exception:  # noqa: BLE001 - a driver outside of the cluster (ray://) has none; what is raised is not said
        return None


def _actor(node: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    measurer: Any = ray.remote(num_cpus=0)(Measurer)
    return measurer.options(scheduling_strategy=there).remote()
