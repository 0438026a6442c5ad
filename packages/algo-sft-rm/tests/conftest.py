"""Small models trained in this process through the loss contract: one in float64, one by the real backend."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.model import combine, reduce_metrics
from rl_data_text.config import CharactersConfig
from rl_data_text.tokenizers.characters import CharacterTokenizer
from rl_torch.losses import LossBatch, TokenOutputs, call_loss, load_loss

torch.set_num_threads(1)


def outputs_from_logits(logits: list[torch.Tensor], batch: SequenceBatch, names: tuple[str, ...]) -> TokenOutputs:
    """``logits[i]`` is [L_i, V]; position t predicts token t + 1; a sequence's first token gets 0."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for index, z in enumerate(logits):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(index)].astype(np.int64))
        log_p = torch.log_softmax(z[:-1], dim=-1)
        values = {
            "logprobs": log_p.gather(1, tokens[1:, None]).squeeze(1),
            "mean_logprobs": log_p.mean(1),
            "logsumexp": z[:-1].logsumexp(1),
        }
        for name in names:
            found[name].append(torch.cat([z.new_zeros(1), values[name]]))
    joined = {name: torch.cat(found[name]) if name in names else None for name in ("logprobs", *names)}
    ids = torch.from_numpy(batch.sequence_ids)
    empty = {"entropy": None, "values": None, "scores": None}
    return TokenOutputs(**joined, **empty, sequence_ids=ids, num_sequences=len(batch))


class TinyModel:
    """The controller's ``Model`` with a GRU language model behind it, in any precision."""

    def __init__(
        self,
        *,
        vocabulary: int = 12,
        learning_rate: float = 0.1,
        optimizer: str = "sgd",
        max_tokens: int = 10_000,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(vocabulary, 16).to(dtype)
        self.gru = torch.nn.GRU(16, 16, batch_first=True).to(dtype)
        self.head = torch.nn.Linear(16, vocabulary).to(dtype)
        self.dtype, self.max_tokens, self.learning_rate = dtype, max_tokens, learning_rate
        self.parameters = [*self.embedding.parameters(), *self.gru.parameters(), *self.head.parameters()]
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        self.optimizer = kind(self.parameters, lr=learning_rate)

    def logits(self, batch: SequenceBatch) -> list[torch.Tensor]:
        rows = [torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64)) for i in range(len(batch))]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        scores = self.head(self.gru(self.embedding(padded))[0])
        return [scores[i, : len(row)] for i, row in enumerate(rows)]

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        self.optimizer.zero_grad()
        metrics = self._run(batch, loss, scale or Scale.of(batch), backward=True)
        norm = torch.sqrt(sum((p.grad.square().sum() for p in self.parameters), torch.zeros((), dtype=self.dtype)))
        self.optimizer.step()
        return metrics | {"grad_norm": norm.item(), "learning_rate": self.learning_rate}

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        return self._run(batch, loss, scale or Scale.of(batch), backward=False)

    def _run(self, batch: SequenceBatch, loss: LossSpec, scale: Scale, *, backward: bool) -> dict[str, float]:
        function = load_loss(loss.function)
        reduced: dict[str, float] = {}
        for indices in batch.pack(self.max_tokens):
            part = batch.select(indices)
            outputs = outputs_from_logits(self.logits(part), part, loss.outputs)
            value, metrics = call_loss(function, loss, outputs, LossBatch(part), scale)
            if backward:
                value.backward()
            for key, metric in {"loss": value, **metrics}.items():
                number = float(metric.detach())
                reduced[key] = combine(key, reduced[key], number) if key in reduced else number
        return reduced

    def gradient(self) -> np.ndarray:
        return torch.cat([p.grad.flatten() for p in self.parameters]).double().numpy()


class LocalModel:
    """The controller's ``Model`` on one rank of the fsdp2 backend in this process."""

    def __init__(self, backend: Fsdp2Backend, role: Role) -> None:
        self.backend, self.role = backend, role

    def forward(self, batch: SequenceBatch, outputs: tuple[str, ...], *, temperature: float = 1.0) -> dict[str, Any]:
        return self.backend.forward(self.role.name, batch, outputs, temperature)

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        return reduce_metrics([self.backend.train(self.role.name, batch, loss, scale or Scale.of(batch))])

    def evaluate(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        return reduce_metrics([self.backend.evaluate(self.role.name, batch, loss, scale or Scale.of(batch))])


class CharTokenizer:
    """Token ids are the letters' places in the alphabet; 0 ends a completion."""

    def encode_example(self, row: Mapping[str, Any], loss_on: str) -> tuple[np.ndarray, np.ndarray]:
        prompt = [ord(c) - ord("a") + 1 for c in row["prompt"]]
        completion = [ord(c) - ord("a") + 1 for c in row["completion"]] + [0]
        mask = np.ones(len(prompt) + len(completion), np.float32)
        if loss_on == "completion":
            mask[: len(prompt)] = 0
        return np.array(prompt + completion, np.int32), mask


@dataclass
class Tools:
    TinyModel: type[TinyModel]
    CharTokenizer: type[CharTokenizer]


@pytest.fixture
def tools() -> Tools:
    return Tools(TinyModel, CharTokenizer)


@pytest.fixture
def characters() -> Callable[..., CharacterTokenizer]:
    """A real tokenizer of single characters (``<pad>`` 0, ``<eos>`` 1), built from rows."""

    def build(rows: list[dict[str, Any]], **fields: Any) -> CharacterTokenizer:
        tokenizer = CharacterTokenizer(CharactersConfig.model_validate({"name": "characters", **fields}))
        tokenizer.load(None, rows)
        return tokenizer

    return build


@pytest.fixture
def local_model() -> Iterator[Callable[..., LocalModel]]:
    """Load a role into a backend of its own, closed at the end of the test."""
    started: list[Fsdp2Backend] = []

    def load(
        role: Role, tokenizer: CharacterTokenizer | None = None, *, spec: ModelSpec | None = None, **backend: Any
    ) -> LocalModel:
        while started:
            started.pop().close()
        made = _started(Fsdp2Backend(Fsdp2Config(name="fsdp2", **backend)))
        started.append(made)
        shape = {"architecture": "qwen2", "hidden_size": 32, "layers": 2, "heads": 2, "ffn": 64}
        if spec is None:
            size, special = tokenizer.vocab_size, dict(tokenizer.special_tokens)
            spec = ModelSpec(init=shape, vocab_size=size, special_tokens=special, max_length=64, seed=0)
        made.load(role, spec, OptimizerSpec(learning_rate=1e-2) if role.trainable else None)
        return LocalModel(made, role)

    yield load
    for made in started:
        made.close()


def _started(backend: Fsdp2Backend, attempts: int = 5) -> Fsdp2Backend:
    """Set up on a free port; another process may take it in between, so several are tried."""
    for left in reversed(range(attempts)):
        try:
            backend.setup(WorkerContext(0, 1, "127.0.0.1", _free_port(), threads=1, seed=0))
            break
        except torch.distributed.DistNetworkError:
            if not left:
                raise
    return backend


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
