"""What a worker answers when the watchdog asks for a sign of life, about once a second."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Heartbeat:
    """A worker's answer.

    Attributes:
        pid, node_id, host: the process, its Ray node (hex) and that machine's name.
        doing: the call it works on, or empty.
        rss_bytes: memory of the process.
        available_bytes, total_bytes: memory of the machine.
    """

    pid: int
    node_id: str
    host: str
    doing: str
    rss_bytes: int
    available_bytes: int
    total_bytes: int


def own_heartbeat(doing: str) -> Heartbeat:
    """That of this process, a Ray actor."""
    import psutil
    import ray

    memory = psutil.virtual_memory()
    return Heartbeat(
        pid=os.getpid(),
        node_id=ray.get_runtime_context().get_node_id(),
        host=socket.gethostname(),
        doing=doing,
        rss_bytes=psutil.Process().memory_info().rss,
        available_bytes=memory.available,
        total_bytes=memory.total,
    )
