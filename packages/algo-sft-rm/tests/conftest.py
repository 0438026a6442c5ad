"""Small models trained in this process through the loss contract: one in float64, one by the real backend."""

from __future__ import annotations

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
from rl_core.model import reduce_metrics
from rl_data_text.config import CharactersConfig
from rl_data_text.tokenizers.characters import CharacterTokenizer
from rl_ray.ports import free_port
from rl_torch.testing import GruModel

torch.set_num_threads(1)


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
    TinyModel: type[GruModel]
    CharTokenizer: type[CharTokenizer]


@pytest.fixture
def tools() -> Tools:
    return Tools(GruModel, CharTokenizer)


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
            backend.setup(WorkerContext(0, 1, "127.0.0.1", free_port(), threads=1, seed=0))
            break
        except torch.distributed.DistNetworkError:
            if not left:
                raise
    return backend
