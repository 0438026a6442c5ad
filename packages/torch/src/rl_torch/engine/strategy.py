"""What a torch backend has of its own: how a model is built, spread over ranks, computed and updated.

:class:`rl_torch.engine.engine.Engine` does everything else. A strategy is made when a process is set up, and it makes a
:class:`RoleModel` for each role that is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from rl_core.contracts.backend import Topology, WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from torch import Tensor
from transformers import PreTrainedModel

from rl_torch.engine.microbatches import MicroBatches
from rl_torch.engine.world import World
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import Layout, MicroBatch, Packing
from rl_torch.routing import Balancing
from rl_torch.shards import Shard


@dataclass(frozen=True)
class Work:
    """What is computed of every micro-batch.

    Attributes:
        outputs: the fields of :class:`TokenOutputs` that are needed, ``router_loss`` among them where the model has
            :attr:`RoleModel.balancing`.
        temperature: logits are divided by it.
        objective: ``(micro-batch, its outputs) → (scalar to differentiate, what the engine wants back)``.
        backward: differentiate the scalar. Gradients add up over micro-batches, and over ranks with other data.
        loss_scale: the scalar is multiplied by it already.
    """

    outputs: tuple[str, ...]
    temperature: float
    objective: Callable[[MicroBatch, TokenOutputs], tuple[Tensor, Any]]
    backward: bool = False
    loss_scale: float = 1.0


class Stateful(Protocol):
    """Something that every rank has whole, and that a resume needs."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        ...


class RoleModel(ABC):
    """The model of one role on this rank. Methods are called on all ranks, in the same order.

    Attributes:
        hf: the transformers model: its config, class and names. The weights may be elsewhere.
        parameters: numbers in the whole model.
        layout: how its micro-batches are laid out.
        balancing: of its routers, where they are trained.
        extra: state besides parameters and optimizer.
        dtype: of the weights in an export.
    """

    hf: PreTrainedModel
    parameters: int
    layout: Packing | Layout = "auto"
    balancing: Balancing | None = None
    extra: Stateful | None = None
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def run(self, micros: MicroBatches, work: Work) -> Iterable[Any]:
        """Do ``work`` on each of ``micros``; what its objective hands back, in order, or nothing on ranks that do not
        see outputs (earlier pipeline stages). Without pipelines :func:`one_by_one` is
        all of it.
        """

    @abstractmethod
    def finish_gradients(self, loss: float, *, unscale: float) -> tuple[float, bool]:
        """Bring the gradients to their final values, multiplied by ``unscale``.

        Args:
            loss: of this rank.

        Returns:
            their norm, over all ranks, and whether the loss is finite on all of them
            (:func:`rl_torch.gradients.norm_over_ranks`).
        """

    @abstractmethod
    def update(self, *, rate: float, shrink: float, step: int) -> None:
        """Take an optimizer step.

        Args:
            rate: the learning rate.
            shrink: gradients are multiplied by it first, to clip them.
            step: number of this step, from 1.
        """

    @abstractmethod
    def clear_gradients(self) -> None:
        """Forget all gradients."""

    @abstractmethod
    def state(self, steps: int) -> Sequence[Shard]:
        """This rank's parts of what is trained and of the optimizer's state, under names that do not depend on the
        layout; nothing is copied. A collective.

        Args:
            steps: optimizer steps taken.
        """

    def load_state(self, read: Callable[[Sequence[Shard]], None], *, steps: int) -> None:
        """Go on from a checkpoint: ``read`` fills shards that are named like those of :meth:`state`."""
        read(self.state(steps))

    @abstractmethod
    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters under their Hugging Face names, adapters merged, one at a time; a collective.

        See :class:`rl_torch.transports.buckets.NamedWeights`.
        """

    @abstractmethod
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of all that :meth:`named_weights` yields."""

    def metrics(self) -> dict[str, float]:
        """What is reported of a step besides loss, norm and rate; the same on all ranks."""
        return {}

    def export_adapter(self, directory: Path) -> None:
        """Write the adapter by itself, where there is one and a format for it; a collective."""
        return

    def sleep(self) -> None:
        """Free device memory."""
        return

    def wake(self) -> None:
        """Undo :meth:`sleep`."""
        return


class Strategy(ABC):
    """How models are spread over the ranks of a process group, on one of them. Built as ``strategy(config, context)``.

    Attributes:
        name: of the backend, in messages on its checkpoints.
        world: the process group, joined when the strategy is built.
        topology: this rank's place.
        scales_loss: gradients are computed in float16 (:class:`rl_torch.engine.loss_scale.LossScale`).
        width_multiple: of the positions in a row of a micro-batch.
    """

    name: ClassVar[str]
    world: World
    topology: Topology
    scales_loss: bool = False
    width_multiple: int = 1

    @abstractmethod
    def __init__(self, config: Any, context: WorkerContext) -> None: ...

    @abstractmethod
    def build(self, role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None) -> RoleModel:
        """The model of a new role; ``optimizer`` is None for frozen ones."""

    @abstractmethod
    def base_of(self, model: RoleModel) -> RoleModel:
        """``model``, which has an adapter, with the adapter off; it shares memory with it, and has no state."""

    def agree_on_count(self, count: int) -> int:
        """How many micro-batches this rank runs, given how many it has; the rest are fillers."""
        return self.world.maximum(count)

    def active(self) -> AbstractContextManager[None]:
        """What every call runs in."""
        return nullcontext()

    def close(self) -> None:
        """Leave the process group."""
        self.world.close()


def one_by_one(
    micros: Iterable[MicroBatch], work: Work, compute: Callable[[MicroBatch, Work], TokenOutputs]
) -> Iterator[Any]:
    """``work`` on each micro-batch: outputs by ``compute``, objective, backward pass."""
    for micro in micros:
        value, wanted = work.objective(micro, compute(micro, work))
        if work.backward:
            value.backward()
        yield wanted
