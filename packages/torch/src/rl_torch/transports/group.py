"""A process group of its own for weights: one rank sends and generators receive, NCCL or gloo."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from rl_core.contracts.transport import WeightGroup, WeightTransferFailed
from torch import Tensor

from rl_torch.rendezvous import store_of
from rl_torch.transports.buckets import first_line

logger = logging.getLogger(__name__)

_POLL_S = 0.0002
_LONGEST_POLL_S = 0.01


class BroadcastGroup:
    """Joined when built, with all other members; rank 0 sends.

    Built without ``torch.distributed``'s default group, which the trainers have among themselves and engines of
    generators in theirs.

    Raises:
        WeightTransferFailed: the others did not come in time.
    """

    def __init__(self, spec: WeightGroup, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self._group: Any = None
        try:
            self._group = (_nccl if spec.device == "cuda" else _gloo)(store_of(spec, rank), spec, rank)
            # The first exchange is what connects everybody.
            self.broadcast(torch.zeros(1, dtype=torch.uint8, device=spec.device))
        except RuntimeError as error:  # the store's errors and gloo's among them
            raise WeightTransferFailed(f"the group for weights did not form: {first_line(error)}") from error
        except WeightTransferFailed:
            self.leave()
            raise
        logger.info("joined the group for weights as rank %d of %d, on %s", rank, spec.size, spec.device)

    def broadcast(self, tensor: Tensor) -> None:
        """Rank 0's ``tensor`` is in everybody's when it returns.

        Raises:
            WeightTransferFailed: it took longer than the group's timeout, or a member is gone.
        """
        deadline = time.monotonic() + self.spec.timeout_s
        pause, work = _POLL_S, None
        try:
            work = self._group.broadcast(tensor, 0)
            # NCCL's own wait only queues one on the device, and a kernel waits for a dead peer for ever.
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise WeightTransferFailed(f"an exchange of weights stood still for {self.spec.timeout_s:g} s")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_POLL_S)
            work.wait()
        except RuntimeError as error:
            raise WeightTransferFailed(f"an exchange of weights broke off: {first_line(error)}") from error
        finally:
            del work  # gloo's connections end with the last reference, and a traceback would keep this one

    def leave(self) -> None:
        """End what is in progress; the others' exchanges with this process fail."""
        if self._group is not None and self.spec.device == "cuda":
            self._group.abort()
        self._group = None


def _gloo(store: dist.Store, spec: WeightGroup, rank: int) -> dist.ProcessGroupGloo:
    return dist.ProcessGroupGloo(store, rank, spec.size, timedelta(seconds=spec.timeout_s))


def _nccl(store: dist.Store, spec: WeightGroup, rank: int) -> dist.ProcessGroupNCCL:
    torch.cuda.set_device(0)  # the only one this process sees
    options = dist.ProcessGroupNCCL.Options()
    # Its own watchdog would end the process; this class gives up earlier.
    options._timeout = timedelta(seconds=10 * spec.timeout_s)
    return dist.ProcessGroupNCCL(store, rank, spec.size, options)
