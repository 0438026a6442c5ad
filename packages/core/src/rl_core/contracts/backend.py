"""A training backend: the rank-local half of a model.

An instance lives in each Ray actor of a worker group and is called by
:class:`rl_core.contracts.model_handle.ModelHandle`, which does the fan-out once for every backend. Verbs are called
on all ranks of the group, in the same order, so an implementation may use collectives.
A backend may also implement :class:`rl_core.contracts.profiling.Profiles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_core.contracts.rendezvous import Rendezvous


@dataclass(frozen=True)
class WorkerContext:
    """Where a worker stands: handed to ``setup`` of backends and generators.

    ``device`` is ``"cpu"`` or ``"cuda"`` (the actor sees only its own devices, so index 0 is its
    own). ``threads`` is the number of CPU threads it may use. ``shares_device``: trainers and
    generators are on the same devices and take turns. ``rendezvous``: where the group's ranks find each
    other, see :mod:`rl_torch.rendezvous`; ``master_address`` and ``master_port`` are those of it. None
    where somebody sets a component up by hand.
    """

    rank: int
    world_size: int
    master_address: str
    master_port: int
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    local_rank: int = 0
    shares_device: bool = False
    rendezvous: Rendezvous | None = None


@dataclass(frozen=True)
class Topology:
    """How a rank takes part: ranks that share ``dp_rank`` get the same shard (tensor, pipeline or
    context parallel peers); exactly one of them has ``is_output`` and its results are read."""

    dp_rank: int
    dp_size: int
    is_output: bool = True


@dataclass(frozen=True)
class Scale:
    """Global counts over the whole optimizer step (all micro-batches, all data-parallel ranks).

    A loss is a sum divided by one of these, which makes loss and gradient independent of
    micro-batch size, packing, padding and number of ranks.

    Attributes:
        tokens: sum of ``loss_mask`` (weights may be fractional).
        sequences: number of sequences.
        units: number of distinct ``unit`` ids (pairs in DPO), or ``sequences`` where there are none.
        skipped_tokens: those of ``tokens`` that are in sequences without a gradient, which are not computed on
            (:attr:`LossSpec.zero_where`).
    """

    tokens: float
    sequences: float
    units: float
    skipped_tokens: float = 0.0

    @property
    def measured_tokens(self) -> float:
        """What a metric is divided by that is a mean over the tokens that are computed on."""
        return self.tokens - self.skipped_tokens

    @classmethod
    def of(cls, batch: SequenceBatch) -> Scale:
        mask = batch.token_columns.get("loss_mask")
        tokens = float(mask.sum(dtype=np.float64)) if mask is not None else float(len(batch.tokens))
        units = batch.sequence_columns.get("unit")
        count = float(len(np.unique(units))) if units is not None else float(len(batch))
        return cls(tokens=tokens, sequences=float(len(batch)), units=count)


@dataclass(frozen=True)
class LossSpec:
    """A loss by reference, so that it travels to workers and is imported there.

    Attributes:
        function: ``"package.module:function"`` with the signature
            ``loss(outputs, batch, scale, **options) -> (scalar tensor, {metric: tensor})``.
            ``outputs`` has flat per-token tensors (``logprobs``, and if asked ``entropy``,
            ``values``) and ``sum_per_sequence(x)``; ``batch`` has the micro-batch's token and
            sequence columns as tensors; both are free of padding. Position ``t`` of ``logprobs``
            is ``log π(tokens[t] | tokens[<t])`` and 0 at a sequence's first token. Metrics must be
            partial sums already divided by ``scale``: they are added up over micro-batches and
            ranks, except names whose last part starts with ``max_`` / ``min_``, which are reduced
            by maximum / minimum.
        options: keyword arguments for it; plain JSON values.
        outputs: what it reads: any of ``logprobs``, ``entropy``, ``mean_logprobs`` (over the vocabulary),
            ``logsumexp`` (of the logits), ``values``, ``scores``.
        temperature: logits are divided by it before the softmax.
        zero_where: a token column; a token where it is 0 adds nothing to the loss whatever the model says, as where
            ``loss_mask`` is 0. ``train`` then computes nothing on sequences that only have such tokens: loss and
            gradient are the same, and so are metrics in which those tokens count 0. A mean of something that they
            have as well is divided by ``scale.measured_tokens``. None: every token may have a gradient, as with a
            KL or an entropy in the loss.
    """

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("logprobs",)
    temperature: float = 1.0
    zero_where: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What one rank reports of one optimizer step.

    Attributes:
        partial: metrics of this data-parallel rank, still to be reduced over ranks (see
            :class:`LossSpec`); contains ``loss``.
        shared: values equal on all ranks: ``grad_norm`` (before clipping), ``learning_rate``.
        finite: False when the loss or the gradient norm was not finite; then no optimizer step
            was taken, on any rank.
    """

    partial: Mapping[str, float]
    shared: Mapping[str, float]
    finite: bool = True


@dataclass(frozen=True)
class WeightBucket:
    """Some parameters of a model, as one flat byte buffer, under their Hugging Face names.

    Attributes:
        names, shapes, dtypes: one entry per parameter; dtypes are torch names (``"float32"``,
            ``"bfloat16"``). A parameter's bytes follow the previous one's, C-contiguous.
        data: uint8 [sum of sizes]. Only the ends of a weight transport, see
            :mod:`rl_core.contracts.transport`, may put something else here, for each other.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: np.ndarray


class Backend(Protocol):
    """Trains and evaluates models on one rank. Built as ``factory(config)``."""

    def setup(self, context: WorkerContext) -> Topology:
        """Join the process group and set threads and seeds. Called once before any ``load``."""
        ...

    def load(self, role: Role, model: ModelSpec, optimizer: OptimizerSpec | None) -> ModelInfo:
        """Build ``role`` from ``model``; ``optimizer`` is given for trainable roles."""
        ...

    def forward(
        self, role: str, shard: SequenceBatch, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, np.ndarray]:
        """Compute ``outputs`` without gradients: float32 ``[T]`` per name (``scores``: ``[B]``).

        Log-probs and entropies are only needed where ``loss_mask`` is non-zero (everywhere, if
        the column is absent) and are 0 elsewhere. The shard may be empty.
        """
        ...

    def train(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """One optimizer step on the union of all ranks' shards. The shard may be empty."""
        ...

    def evaluate(self, role: str, shard: SequenceBatch, loss: LossSpec, scale: Scale) -> TrainResult:
        """The same loss and metrics without gradients or a step."""
        ...

    def weights(self, role: str) -> Iterator[WeightBucket]:
        """Stream full parameters; every rank iterates to the end, only rank 0's buckets are used."""
        ...

    def save(self, role: str, directory: str) -> None:
        """Write everything that resuming ``role`` bit-exactly needs into ``directory`` (shared, exists).

        May return when the state is copied and continue writing in the background (see :meth:`is_saving`).
        What cannot be written, because the disk is full, is a :class:`rl_core.errors.StorageError` on all ranks:
        the run warns and continues. Files should run no code when they are read: JSON and safetensors, no pickles.
        """
        ...

    def is_saving(self) -> bool:
        """Whether something that ``save`` was asked for is still being written in the background.

        What is written is the state at the time of ``save``, whatever happens afterwards.
        """
        ...

    def finish_saving(self) -> None:
        """Wait until everything that ``save`` was asked for is written; raises what the writing raised."""
        ...

    def restore(self, role: str, directory: str) -> None:
        """Read what ``save`` wrote, possibly on another number of ranks."""
        ...

    def export(self, role: str, directory: str) -> None:
        """Write a Hugging Face safetensors folder that ``from_pretrained`` loads (without tokenizer)."""
        ...

    def sleep(self) -> None:
        """Free device memory while a colocated generator works; a no-op where there is none."""
        ...

    def wake(self) -> None:
        """Undo ``sleep``."""
        ...

    def close(self) -> None:
        """Leave the process group and drop all models; the process may then be set up again."""
        ...
