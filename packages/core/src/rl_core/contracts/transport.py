"""Weight transports: how new weights get from the trainers to the generators.

``object_store`` goes through Ray and needs nothing but :meth:`Backend.weights` and
:meth:`Generator.update_weights`. Each other transport has two ends: one around the backend of every rank, one around
every generator. A config class names those that its component works with in ``weight_transports``
(``rl_torch.transports`` has them for PyTorch); core makes an end in the worker's process when it is first needed,
and calls its methods from a controller in :mod:`rl_rollout.transports`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import RLError


@dataclass(frozen=True)
class BucketLayout:
    """What is in a :class:`rl_core.contracts.backend.WeightBucket`, without the bytes.

    Attributes:
        names, shapes, dtypes: as there.
        nbytes: size of its data.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class WeightGroup:
    """A process group for weights, and where its members find each other; another value means another group.

    Attributes:
        address, port: of the sending rank, which is the group's rank 0.
        size: processes in the group: the sending rank and the generators.
        device: ``cpu`` or ``cuda``; where the bytes go from and to.
        timeout_s: longest wait for the group's other members, at any point.
        rendezvous: how they find each other, see :mod:`rl_torch.rendezvous`. None: at ``address`` and ``port``.
    """

    address: str
    port: int
    size: int
    device: str
    timeout_s: float
    rendezvous: Rendezvous | None = None


class WeightTransferFailed(RLError):
    """An exchange of weights broke off; the generator has its old weights, and the exchange may be tried again."""


class CollectiveSender(Protocol):
    """The end of ``collective`` around a backend. Built as ``factory(backend)``."""

    def plan(self, role: str) -> tuple[BucketLayout, ...]:
        """What :meth:`send` will send, in order; called on every rank, rank 0's answer counts."""
        ...

    def send(self, role: str, group: WeightGroup | None) -> None:
        """Send the weights to ``group``, after joining it if need be.

        Called on every rank; those other than rank 0 have no group and only take part in gathering.

        Raises:
            WeightTransferFailed: a member is gone or too late. The group is left.
        """
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class CollectiveReceiver(Protocol):
    """The end of ``collective`` around a generator. Built as ``factory(generator)``."""

    def receive(self, group: WeightGroup, rank: int, plan: tuple[BucketLayout, ...], version: int) -> None:
        """Receive all of ``plan`` as the group's ``rank``, then update the generator to ``version``.

        Raises:
            WeightTransferFailed: as for the sender; the generator was not touched.
        """
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class IpcSender(Protocol):
    """The end of ``ipc`` around a backend: one buffer, filled again and again. Built as ``factory(backend)``."""

    def plan(self, role: str) -> tuple[BucketLayout, ...]:
        """What the buffer will hold, one after the other; each rank's own answer counts."""
        ...

    def begin(self, role: str, update: int, device: str) -> bytes:
        """Make the buffer, and describe it to another process. ``update`` names it in the other calls.

        Raises:
            WeightTransferFailed: this machine cannot do it.
        """
        ...

    def next(self, update: int) -> None:
        """Fill the buffer with the next bucket; collective, so every rank must come as far, or :meth:`finish`."""
        ...

    def finish(self, update: int) -> None:
        """Gather what is left without using it, and drop the buffer."""
        ...

    def close(self) -> None:
        """Drop everything, without gathering."""
        ...


class IpcReceiver(Protocol):
    """The end of ``ipc`` around a generator. Built as ``factory(generator)``."""

    def receive(
        self, buffer: bytes, next_bucket: Callable[[], None], plan: tuple[BucketLayout, ...], version: int
    ) -> None:
        """Update the generator to ``version`` from the buffer, calling ``next_bucket`` before each bucket.

        Raises:
            WeightTransferFailed: the buffer cannot be read here; the generator was not touched.
        """
        ...

    def close(self) -> None:
        """Drop everything."""
        ...


def __getattr__(name: str) -> Any:
    """The old name of :class:`WeightGroup`, until 0.3."""
    if name == "Meeting":
        warnings.warn("rl_core.contracts.transport.Meeting is now called WeightGroup", DeprecationWarning, stacklevel=2)
        return WeightGroup
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
