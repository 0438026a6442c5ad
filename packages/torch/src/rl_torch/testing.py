"""An in-process stand-in for :class:`rl_core.contracts.model_handle.ModelHandle` for tests of algorithms.

It runs the real losses over real micro-batches, with no workers, so that a test of ``step`` takes
milliseconds; and in float64, so that gradients can be compared to 1e-10.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.zero_gradient import without_zero_gradient
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_torch.losses import LossBatch, MetricSums, TokenOutputs, call_loss, load_loss


class InProcessModel(ABC):
    """Trains and evaluates in this process; derive from it and add :meth:`outputs`.

    Args:
        parameters: what the optimizer moves.
        learning_rate: constant.
        optimizer: ``sgd`` (steps are gradients times the learning rate) or ``adam``; neither clips.
        max_tokens: tokens per micro-batch.
        dtype: of the floating-point columns that losses see.

    Attributes:
        parameters: as given.
        calls: ``train``, ``evaluate`` and ``forward <outputs>``, in order.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        optimizer: Literal["sgd", "adam"] = "sgd",
        max_tokens: int = 10_000,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters = list(parameters)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        self.optimizer = kind(self.parameters, lr=learning_rate)
        self.learning_rate, self.max_tokens, self.dtype = learning_rate, max_tokens, dtype
        self.calls: list[str] = []

    @abstractmethod
    def outputs(self, batch: SequenceBatch, names: tuple[str, ...], temperature: float) -> TokenOutputs:
        """What the model says about a micro-batch, with gradients."""

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """float32 [T] per output, 0 where ``loss_mask`` is (``scores``: [B])."""
        self.calls.append(f"forward {' '.join(outputs)}")
        with torch.no_grad():
            computed = self.outputs(batch, outputs, temperature)
        mask = batch.token_columns["loss_mask"] != 0
        arrays = {name: getattr(computed, name).numpy() for name in outputs}
        return {
            name: (array if name == "scores" else np.where(mask, array, 0)).astype(np.float32)
            for name, array in arrays.items()
        }

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """One optimizer step on the whole batch; the metrics of ``ModelHandle.train``."""
        self.calls.append("train")
        self.optimizer.zero_grad()
        part, scale, skipped = without_zero_gradient(batch, loss, scale or Scale.of(batch))
        metrics = self._run(part, loss, scale, backward=True) | skipped
        norm = nn.utils.get_total_norm(self._gradients())
        self.optimizer.step()
        return metrics | {"grad_norm": norm.item(), "learning_rate": self.learning_rate}

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """The loss and its metrics, without an update."""
        self.calls.append("evaluate")
        with torch.no_grad():
            return self._run(batch, loss, scale or Scale.of(batch), backward=False)

    def gradient(self) -> np.ndarray:
        """float64: the last gradients of all parameters that had one, end to end."""
        return torch.cat([g.flatten() for g in self._gradients()]).double().numpy()

    def weights(self) -> np.ndarray:
        """float64: all parameters, end to end."""
        return torch.cat([p.detach().flatten() for p in self.parameters]).double().numpy()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _run(self, batch: SequenceBatch, loss: LossSpec, scale: Scale, *, backward: bool) -> dict[str, float]:
        function, sums = load_loss(loss.function), MetricSums()
        for indices in batch.pack(self.max_tokens):
            part = batch.select(indices)
            outputs = self.outputs(part, loss.outputs, loss.temperature)
            value, metrics = call_loss(function, loss, outputs, PreciseBatch(part, self.dtype), scale)
            if backward:
                value.backward()
            sums.add({**metrics, "loss": value})
        return sums.result()


class GruModel(InProcessModel):
    """A language model with one recurrent layer of 16 units, from a seed, in any precision.

    Args:
        vocabulary: number of token ids.
        seed: of the weights; sets torch's global seed.
        options: as of :class:`InProcessModel`.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 12,
        learning_rate: float = 0.1,
        optimizer: Literal["sgd", "adam"] = "sgd",
        max_tokens: int = 10_000,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(vocabulary, 16).to(dtype)
        self.gru = nn.GRU(16, 16, batch_first=True).to(dtype)
        self.head = nn.Linear(16, vocabulary).to(dtype)
        parameters = [*self.embedding.parameters(), *self.gru.parameters(), *self.head.parameters()]
        super().__init__(
            parameters, learning_rate=learning_rate, optimizer=optimizer, max_tokens=max_tokens, dtype=dtype
        )

    def logits(self, batch: SequenceBatch) -> list[Tensor]:
        """[L_i, vocabulary] of each sequence."""
        rows = [torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64)) for i in range(len(batch))]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        scores = self.head(self.gru(self.embedding(padded))[0])
        return [scores[i, : len(row)] for i, row in enumerate(rows)]

    def outputs(self, batch: SequenceBatch, names: tuple[str, ...], temperature: float) -> TokenOutputs:
        return outputs_from_logits(self.logits(batch), batch, names, temperature=temperature)


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights as transformers computes it: what a backend changed of its layers is left behind."""
    config = type(model.config).from_dict(model.config.to_dict())
    copy = type(model)._from_config(config, attn_implementation="sdpa", dtype=model.dtype)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


class PreciseBatch(LossBatch):
    """A :class:`~rl_torch.losses.LossBatch` whose floating-point columns have the given precision."""

    def __init__(self, batch: SequenceBatch, dtype: torch.dtype) -> None:
        super().__init__(batch)
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        array = self._array(name)
        if array.dtype.kind != "f":
            return super().__getitem__(name)
        return torch.from_numpy(array.copy()).to(self._dtype)


def columns_of(batch: SequenceBatch, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The batch's columns as a loss sees them, to be changed at will."""
    tensors = PreciseBatch(batch, dtype)
    return {name: tensors[name] for name in [*batch.token_columns, *batch.sequence_columns]}


def outputs_of(batch: SequenceBatch, **tensors: Tensor) -> TokenOutputs:
    """The given outputs for a batch, the others None."""
    names = ("logprobs", "entropy", "values", "scores", "mean_logprobs", "logsumexp")
    return TokenOutputs(
        **{**dict.fromkeys(names), **tensors},
        sequence_ids=torch.from_numpy(batch.sequence_ids),
        num_sequences=len(batch),
    )


def outputs_from_logits(
    logits: Sequence[Tensor],
    batch: SequenceBatch,
    names: tuple[str, ...] = ("logprobs",),
    *,
    temperature: float = 1.0,
) -> TokenOutputs:
    """The outputs ``names`` of a language head, with gradients to the logits and not yet masked.

    Args:
        logits: [L_i, V] of each sequence; position t predicts token t + 1; a sequence's first token gets 0.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for index, raw in enumerate(logits):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(index)].astype(np.int64))
        scaled = raw[:-1] / temperature
        log_p = torch.log_softmax(scaled, dim=-1)
        values = {
            "logprobs": log_p.gather(1, tokens[1:, None]).squeeze(1),
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "mean_logprobs": log_p.mean(-1),
            "logsumexp": scaled.logsumexp(-1),
        }
        for name in names:
            found[name].append(torch.cat([raw.new_zeros(1), values[name]]))
    return outputs_of(batch, **{name: torch.cat(parts) for name, parts in found.items()})


def with_sampled_logprobs(
    batch: SequenceBatch, policy: InProcessModel, rng: np.random.Generator, *, noise: float = 0.1
) -> SequenceBatch:
    """``batch`` as if a generator close to the policy had sampled it: log-probs with normal noise.

    They are those at the first sequence's ``temperature``, or 1. The policy's ``calls`` are cleared.
    """
    mask, temperatures = batch.token_columns["loss_mask"], batch.sequence_columns.get("temperature", [1.0])
    exact = policy.forward(batch, temperature=float(temperatures[0]))["logprobs"]
    policy.calls.clear()
    off = rng.normal(scale=noise, size=len(mask)).astype(np.float32)
    return batch.with_columns(token={"sampled_logprobs": (exact + off) * mask})
