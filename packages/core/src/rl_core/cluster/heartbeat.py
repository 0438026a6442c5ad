"""Signs of life: a thread in each worker writes a counter into the cluster's key-value store, the driver reads it.

A busy worker's thread goes on beating; that of a stopped process, or of one stuck in C with Python's lock, does
not. Counters are compared, never clocks, so machines need not agree on the time. The store is the one the cluster
keeps its own state in: it is reachable from every machine, and through a Ray client.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

BEAT_EVERY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """What a worker says of itself about once a second.

    Attributes:
        count: beats so far.
        pid, node_id, host: the process, its Ray node (hex) and that machine's name.
        doing: the call it works on, or empty.
        starting: whether it is importing or loading, which may hold Python's lock for long.
        rss_bytes: memory of the process.
        available_bytes, total_bytes: memory of the machine.
    """

    count: int
    pid: int
    node_id: str
    host: str
    doing: str
    starting: bool
    rss_bytes: int
    available_bytes: int
    total_bytes: int


class Pulse:
    """The beating thread of a worker process, until :meth:`stop` or the end of the process.

    Args:
        actor_id: hex id of the Ray actor.
        node_id: hex id of its node.
        state: returns what goes into ``doing`` and ``starting``.
    """

    def __init__(self, actor_id: str, node_id: str, state: Callable[[], tuple[str, bool]]) -> None:
        self._key = _key(actor_id)
        self._node_id = node_id
        self._state = state
        self._count = 0
        self._stopped = threading.Event()
        self._once = threading.Lock()
        self.beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Write one heartbeat now; where the store is away for a moment, the next one tries again."""
        with self._once:
            self._count += 1
            try:
                self._write()
            except Exception as error:  # noqa: BLE001 - Ray raises several kinds, and none is a reason to stop working
                logger.warning("a heartbeat could not be sent: %s: %s", type(error).__name__, error)

    def _write(self) -> None:
        import psutil
        from ray.experimental.internal_kv import _internal_kv_put

        doing, starting = self._state()
        memory = psutil.virtual_memory()
        beat = Heartbeat(
            count=self._count,
            pid=os.getpid(),
            node_id=self._node_id,
            host=socket.gethostname(),
            doing=doing,
            starting=starting,
            rss_bytes=psutil.Process().memory_info().rss,
            available_bytes=memory.available,
            total_bytes=memory.total,
        )
        _internal_kv_put(self._key, json.dumps(asdict(beat)))

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_EVERY_S):
            self.beat()


def read(actor_id: str) -> Heartbeat | None:
    """The newest heartbeat of an actor, or None before its first."""
    return read_all([actor_id])[actor_id]


def read_all(actor_ids: Sequence[str]) -> dict[str, Heartbeat | None]:
    """The newest heartbeat of each actor, asked for in one request (through a Ray client: one each)."""
    from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

    keys = {actor_id: _key(actor_id).encode() for actor_id in actor_ids}
    store = internal_kv_get_gcs_client()
    values = store.internal_kv_multi_get(list(keys.values()), None) if store is not None else None
    beats = {}
    for actor_id, key in keys.items():
        value = values.get(key) if values is not None else _internal_kv_get(key)
        beats[actor_id] = Heartbeat(**json.loads(value)) if value else None
    return beats


def erase(actor_id: str) -> None:
    """Remove what an ended actor left in the store."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_key(actor_id))


def _key(actor_id: str) -> str:
    return f"rl_core/heartbeat/{actor_id}"
