"""The one place where stores and process groups of ``torch.distributed`` are made.

Neither authenticates anybody, so a store is as near as its ranks are: in memory for one rank, a file that only this
user may open for ranks of one machine, and a server on one address for ranks of several. ``tcp://`` listens on all
interfaces whatever its address says, and is not used.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.contracts.transport import WeightGroup
from rl_core.network import bound_socket, interface_towards, use_interface


def join(context: WorkerContext, backend: str, *, timeout: timedelta) -> None:
    """Join the default process group; ``torch.distributed.destroy_process_group`` leaves it.

    Args:
        backend: as for ``torch.distributed.init_process_group``.
        timeout: of the group's collectives, and longest wait for the other ranks.

    Raises:
        RuntimeError: rank 0, or some other rank, did not come in time.
    """
    place = context.rendezvous or _by_hand(context.master_address, context.master_port, context.world_size)
    store = open_store(place, rank=context.rank, size=context.world_size, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=context.rank, world_size=context.world_size, timeout=timeout)


def store_of(group: WeightGroup, rank: int) -> dist.Store:
    """The store of a group for weights, which is separate from the default group."""
    place = group.rendezvous or _by_hand(group.address, group.port, group.size)
    return open_store(
        place, rank=rank, size=group.size, timeout=timedelta(seconds=group.timeout_s), wait_for_workers=False
    )


def open_store(
    place: Rendezvous, *, rank: int, size: int, timeout: timedelta, wait_for_workers: bool = True
) -> dist.Store:
    """The store that the ``size`` ranks of one group share.

    Args:
        timeout: longest wait for rank 0, for the other ranks, and for a key.
        wait_for_workers: on several machines, return when all ranks have come.
    """
    if size == 1:
        store: dist.Store = dist.HashStore()
    elif place.folder:
        store = dist.FileStore(os.path.join(place.folder, "store"), size)
    else:
        return _over_tcp(place, rank, size, timeout, wait_for_workers=wait_for_workers)
    store.set_timeout(timeout)
    return store


def _over_tcp(place: Rendezvous, rank: int, size: int, timeout: timedelta, *, wait_for_workers: bool) -> dist.Store:
    listen = None
    if rank == 0:  # the store closes the descriptor it is given
        held = place.listen_fd
        listen = os.dup(held) if held >= 0 else bound_socket(place.address, place.port).detach()
    return dist.TCPStore(
        place.address,
        place.port,
        size,
        is_master=rank == 0,
        timeout=timeout,
        wait_for_workers=wait_for_workers,
        master_listen_fd=listen,
    )


def _by_hand(address: str, port: int, size: int) -> Rendezvous:
    """Outside a run nobody has chosen an interface: ranks take the one through which they reach the first."""
    interface = interface_towards("127.0.0.1" if size == 1 else address)
    if interface is not None:
        use_interface(interface, instead=False)
    return Rendezvous(address, port)
