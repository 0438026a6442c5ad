"""Small models that answer an algorithm's forwards and write down what it asks them to train on."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import Head, ModelInfo, ModelSpec, Role
from rl_core.zero_gradient import without_zero_gradient
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model

VOCAB, MAX_LENGTH = 48, 64
SHAPE = {"architecture": "qwen2", "hidden_size": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 64}
SPREAD = 0.05
"""Standard deviation of what an update, or training without it, changed in each weight."""

Weights = Literal["start", "later", "reference"]


@dataclass(frozen=True)
class Case:
    """One optimizer step that an algorithm asked for. ``weights`` are those the model has by then."""

    head: Head
    weights: Weights
    batch: SequenceBatch
    loss: LossSpec
    scale: Scale


class Models:
    """Small models with either head: as they start, after an update, and a reference; also as folders."""

    def __init__(self, directory: Path, special_tokens: Mapping[str, int | None]) -> None:
        self._special_tokens = special_tokens
        self._wrapped: dict[tuple[Head, Weights], Any] = {}
        self.folders: dict[tuple[Head, Weights], str] = {}
        for head in ("lm", "scalar"):
            start = build_model(self._spec(init=SHAPE, seed=3), dtype=torch.float32, head=head)
            if head == "scalar":  # a new head is 0
                torch.nn.init.normal_(start.score.weight, std=0.3, generator=torch.Generator().manual_seed(0))
            for seed, weights in enumerate(("start", "later", "reference")):
                model = deepcopy(start)
                if weights != "start":
                    _disturb(model, seed)
                folder = directory / f"{head}-{weights}"
                model.save_pretrained(folder)
                self.folders[head, weights] = str(folder)
                self._wrapped[head, weights] = wrap_model(model, head)

    def specs(self) -> dict[tuple[Head, Weights], ModelSpec]:
        """Where a backend finds each of them."""
        return {key: self._spec(path=folder) for key, folder in self.folders.items()}

    def recorder(self, role: Role) -> Recorder:
        """A model in that role."""
        weights = "reference" if role.name == "reference" else "start"
        return Recorder(role.head, self._wrapped[role.head, weights])

    def _spec(self, **source: Any) -> ModelSpec:
        return ModelSpec(**source, vocab_size=VOCAB, max_length=MAX_LENGTH, special_tokens=self._special_tokens)


class Recorder:
    """Stands in for a ``ModelHandle``: answers forwards, and keeps what it is asked to train on."""

    def __init__(self, head: Head, model: Any) -> None:
        self.info = ModelInfo(parameters=0, max_length=MAX_LENGTH, vocab_size=VOCAB)
        self.updates: list[Case] = []
        self._head, self._model = head, model

    @torch.no_grad()
    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """What the starting weights say; algorithms ask before they train."""
        computed = compute_outputs(self._model, MicroBatch.build(batch), outputs, temperature=temperature)
        return {name: getattr(computed, name).numpy() for name in outputs}

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """Keep the request."""
        weights = "later" if self.updates else "start"
        part, scale, skipped = without_zero_gradient(batch, loss, scale or Scale.of(batch))
        self.updates.append(Case(self._head, weights, part, loss, scale))
        return {"loss": 0.0, **skipped}


def _disturb(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += SPREAD * torch.randn(parameter.shape, generator=generator)
