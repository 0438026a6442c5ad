"""A worker of a run on a machine of its own, without Ray: RANK INTERFACE. The other one's rendezvous are on stdin.

Prints lines of JSON: the places that it holds, if it is the first rank; then what it listens on and what it received.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import sockets
import torch
import torch.distributed as dist
from listening_jobs import SPEC
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.cluster.group_rendezvous import RendezvousPoints
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import OptimizerSpec, Role
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.contracts.transport import WeightGroup
from rl_core.network import chosen, use_interface
from rl_torch.transports.group import BroadcastGroup


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(rank: int, interface: str) -> None:
    name, address = chosen(interface, otherwise="")
    use_interface(name)
    held = RendezvousPoints()
    if rank == 0:
        places = [held.open(purpose, address=address, one_machine=False) for purpose in ("train", "weights")]
        say([asdict(place) for place in places])
    else:
        places = [Rendezvous(**place) for place in json.loads(sys.stdin.readline())]
    train, weights = places
    context = WorkerContext(rank, 2, train.address, train.port, rendezvous=train)
    backend = Fsdp2Backend(Fsdp2Config(name="fsdp2"))
    backend.setup(context)
    backend.load(Role("policy", trainable=True), SPEC, OptimizerSpec(1e-3))
    total = torch.ones(1)
    dist.all_reduce(total)
    sent = torch.full((4,), 7 if rank == 0 else 0, dtype=torch.uint8)
    group = BroadcastGroup(WeightGroup(weights.address, weights.port, 2, "cpu", 60.0, weights), rank)
    group.broadcast(sent)
    opened = [(address, port) for _, address, port in sockets.listening([os.getpid()])]
    say({"opened": opened, "sum": total.item(), "received": sent.tolist()})
    sys.stdin.read()
    group.leave()
    backend.close()
    held.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
