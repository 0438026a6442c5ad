"""Calling an algorithm's loss function, and adding up its metrics.

A loss is named by reference (:class:`~rl_core.contracts.backend.LossSpec`) and sees flat tensors
only: no logits, padding, packing or ranks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.errors import ConfigError
from torch import Tensor

LossFunction = Callable[..., tuple[Tensor, Mapping[str, Any]]]


@dataclass(frozen=True)
class TokenOutputs:
    """Outputs of a model for a micro-batch of T tokens in B sequences, in batch order.

    Attributes:
        logprobs: float32 [T], ``log π(tokens[t] | tokens[<t])``; 0 where ``loss_mask`` is 0 and at
            the first token of a sequence. None unless asked for, like the other outputs.
        entropy: float32 [T], of the distribution that token t was drawn from; 0 in the same places.
        values: float32 [T], the scalar head at the position *before* token t; 0 in the same places.
        scores: float32 [B], the scalar head at each sequence's last token (that is not the padding token).
        sequence_ids: int64 [T], 0..B-1.
        num_sequences: B.
        mean_logprobs: float32 [T], the mean of ``log π(v | tokens[<t])`` over the vocabulary; 0 in the same places.
        logsumexp: float32 [T], of the logits that token t was drawn from; 0 in the same places.
        router_loss: a scalar, see :class:`rl_torch.routing.Balancing`; the backend adds it to what a loss returns.
    """

    logprobs: Tensor | None
    entropy: Tensor | None
    values: Tensor | None
    scores: Tensor | None
    sequence_ids: Tensor
    num_sequences: int
    mean_logprobs: Tensor | None = None
    logsumexp: Tensor | None = None
    router_loss: Tensor | None = None

    def sum_per_sequence(self, x: Tensor) -> Tensor:
        """[T] → [B]: the sum over each sequence's tokens (0 for a sequence without any)."""
        return x.new_zeros(self.num_sequences).index_add(0, self.sequence_ids, x)

    def mean_per_sequence(self, x: Tensor, mask: Tensor) -> Tensor:
        """[T] → [B]: ``Σ x·mask / Σ mask`` per sequence, 0 where the mask is empty."""
        count = self.sum_per_sequence(mask.to(x.dtype))
        return self.sum_per_sequence(x * mask) / torch.where(count == 0, torch.ones_like(count), count)


class LossBatch:
    """A micro-batch's columns as tensors: ``batch["advantages"]`` or ``batch.advantages``.

    Floating-point columns come as float32, integers (``tokens`` among them) as int64, booleans as
    bool. ``tokens`` [T], ``sequence_ids`` [T] and ``lengths`` [B] are always there.
    """

    def __init__(self, batch: SequenceBatch, *, device: str | torch.device = "cpu") -> None:
        self._batch = batch
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = _to_tensor(self._array(name)).to(self._device)
        return self._tensors[name]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __len__(self) -> int:
        """Number of sequences B."""
        return len(self._batch)

    def _names(self) -> list[str]:
        return ["tokens", "sequence_ids", "lengths", *self._batch.token_columns, *self._batch.sequence_columns]

    def _array(self, name: str) -> np.ndarray:
        for columns in (self._batch.token_columns, self._batch.sequence_columns):
            if name in columns:
                return columns[name]
        if name in ("tokens", "sequence_ids", "lengths"):
            return getattr(self._batch, name)
        raise KeyError(f"the batch has no column {name!r}; it has {', '.join(sorted(self._names()))}")


def load_loss(reference: str) -> LossFunction:
    """Import ``"package.module:function"``.

    Raises:
        ConfigError: the reference is malformed, or the module or function does not exist.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"loss {reference!r}: write it as 'package.module:function'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"loss {reference!r}: {error}\n    is the package that holds {module_name} installed on every machine?"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"loss {reference!r}: {module_name} ({module.__file__}) has no function {attribute!r}")
    return function


def call_loss(
    function: LossFunction, spec: LossSpec, outputs: TokenOutputs, batch: LossBatch, scale: Scale
) -> tuple[Tensor, Mapping[str, Any]]:
    """Call a loss and check what it returns.

    Raises:
        TypeError: it returned something other than ``(scalar tensor, {metric: number})``.
    """
    result = function(outputs, batch, scale, **spec.options)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and result[0].ndim == 0):
        raise TypeError(f"loss {spec.function!r} must return (scalar tensor, {{metric: number}}), got {_shape(result)}")
    return result


class MetricSums:
    """Metrics of several micro-batches, reduced by the naming rule of :class:`LossSpec`.

    Tensors stay where they are until :meth:`result`, so that a micro-batch never waits for a device.
    """

    def __init__(self) -> None:
        self._values: dict[str, Tensor | float] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add one micro-batch's partial metrics."""
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                value = value.detach().double()
            self._values[name] = value if name not in self._values else _combine(name, self._values[name], value)

    def result(self) -> dict[str, float]:
        """The totals as Python numbers."""
        return {name: float(value) for name, value in self._values.items()}


def _combine(name: str, a: Tensor | float, b: Tensor | float) -> Tensor | float:
    last = name.rpartition("/")[2]
    if last.startswith(("max_", "min_")):
        device = next((v.device for v in (a, b) if isinstance(v, Tensor)), None)
        pair = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in (a, b)])
        return pair.max() if last.startswith("max_") else pair.min()
    return a + b


def _to_tensor(array: np.ndarray) -> Tensor:
    kind = array.dtype.kind
    dtype = {"f": np.float32, "b": np.bool_}.get(kind, np.int64)
    # Copied: arrays from Ray are read-only, and a loss may write to its tensors.
    return torch.from_numpy(array.astype(dtype))


def _shape(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shape(v) for v in value)})"
    if isinstance(value, Tensor):
        return f"tensor of shape {list(value.shape)}"
    return type(value).__name__
