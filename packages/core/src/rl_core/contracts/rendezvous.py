"""The rendezvous of a process group.

``rl_torch.rendezvous`` makes stores of ``torch.distributed`` from it. A component that joins
``tcp://address:port`` on its own works as well, but then listens on all interfaces of its machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of one group find each other; used once.

    Attributes:
        address, port: where rank 0 may listen. In a run, its process holds the port until the group has ended.
        folder: where all members are on one machine: an empty folder that only its owner may enter, for a file
            store. It is removed after the group has ended. Empty for members on several machines.
        listen_fd: in rank 0's process, the descriptor of the bound socket that holds the port, to be duplicated by
            whoever listens; -1 where nothing holds it, and without meaning in other processes.
    """

    address: str
    port: int
    folder: str = ""
    listen_fd: int = -1
