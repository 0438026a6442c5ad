"""The process behind every worker: a Ray actor that hosts one component at a time.

It knows no kind of component. Hosts outlive stages: a stage unloads what it built and the next
one builds its own in the same, already warm process.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl_core.config.redaction import RedactingFormatter
from rl_core.contracts.backend import WorkerContext

logger = logging.getLogger(__name__)


class Host:
    """Runs inside a Ray actor."""

    def __init__(self, name: str, manifest: dict[str, str], logs: str | None, threads: int) -> None:
        # Before anything imports torch: OpenMP reads these once.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._name = name
        if logs:
            _log_to(Path(logs) / f"{name}.log")
            logger.info("%s: pid %d on %s", name, os.getpid(), socket.gethostname())
        from rl_core.plugins.registry import load_registry

        self._registry = load_registry()
        self._registry.check_manifest(manifest)
        self._component: Any = None

    def address(self) -> tuple[str, int]:
        """This machine's address and a free port, for a process group's rendezvous."""
        import ray

        from rl_core.cluster.ports import free_port

        return ray.util.get_node_ip_address(), free_port()

    def pid(self) -> int:
        """Process id, for messages and tests."""
        return os.getpid()

    def warm(self, factory: str) -> None:
        """Import what a later :meth:`build` needs, while others are at work."""
        self._registry.resolve(factory)

    def build(self, factory: str, config: Any, context: WorkerContext, kind: str) -> Any:
        """Create the component and ``setup`` it; returns what ``setup`` returns."""
        self.unload()
        for outcome in self._registry.call("on_worker_start", role=kind, rank=context.rank):
            if outcome.error is not None:
                raise RuntimeError(f"{outcome.package}: on_worker_start failed: {outcome.error}") from outcome.error
        self._component = self._registry.resolve(factory)(config)
        logger.info("%s: built %s (rank %d of %d)", self._name, factory, context.rank, context.world_size)
        return self._component.setup(replace(context))

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the hosted component."""
        return getattr(self._component, method)(*args)

    def call_each(self, method: str, buckets: list[Any], *args: Any) -> Any:
        """Like :meth:`call`, with object references inside ``buckets`` fetched here, not by the caller."""
        import ray

        return getattr(self._component, method)(ray.get(buckets), *args)

    def stream(self, method: str, keep: bool, *args: Any) -> list[Any]:
        """Iterate a method's results to the end; put each into the object store if ``keep``."""
        import ray

        references = []
        for item in getattr(self._component, method)(*args):
            if keep:
                references.append(ray.put(item))
        return references

    def unload(self) -> None:
        """Drop the component, so that the process can host another."""
        if self._component is not None:
            self._component.close()
            self._component = None
            gc.collect()


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
