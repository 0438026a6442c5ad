"""An algorithm: one ``step`` that reads like the paper's pseudo-code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.model import OptimizerSpec, Role
from rl_core.contracts.model_handle import ModelHandle
from rl_core.metrics import Metrics

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.long_rows import LongRows

AlgorithmInput = Literal["examples", "rollouts"]


@dataclass(frozen=True)
class BatchPlan:
    """What one step consists of, for ``rl check`` and the loop.

    Attributes:
        input: ``examples`` (rows are encoded and trained on) or ``rollouts`` (rows are prompts).
        rows_per_step: data rows one step draws (prompts, conversations or pairs).
        group_size: completions per prompt (1 for examples).
        optimizer_steps: optimizer steps in one step.
        max_resample_rounds: for ``rollouts``: how often prompts are drawn again until
            ``rows_per_step`` groups pass :meth:`Algorithm.keep`; 0 keeps every group.
        notes: extra lines for the user.
    """

    input: AlgorithmInput
    rows_per_step: int
    group_size: int = 1
    optimizer_steps: int = 1
    max_resample_rounds: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)


class Algorithm(Protocol):
    """Turns a batch into optimizer steps. Built as ``factory(config)`` in the driver.

    Derive from :class:`rl_core.algorithm.AlgorithmBase`, which has a sensible default for all but
    :meth:`roles` and :meth:`step`.

    The loop around it (data, rollouts, rewards, logging, checkpoints) belongs to the core. For
    ``rollouts`` the batch has the generator's columns plus sequence columns ``group`` (int64, one
    id per prompt), ``reward`` (float32) and ``temperature`` (float32, that of sampling). For
    ``examples`` the core adds the sequence column ``row`` (int64), the row's index in the dataset.
    """

    def roles(self) -> Sequence[Role]:
        """The models it works with; the first trainable one is generated from and exported."""
        ...

    def plan(self) -> BatchPlan:
        """The size of a step."""
        ...

    def optimizer(self, role: str, total_steps: int) -> OptimizerSpec:
        """Optimizer of a trainable role; ``total_steps`` counts its optimizer steps over the stage."""
        ...

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        """``examples`` only: rows to sequences with ``loss_mask``; a ``DataError`` names a row that cannot be used.

        A function of the row alone: rows are encoded before :meth:`start`, and in a thread of their own while other
        methods are called.
        """
        ...

    def limit_rows(self, max_length: int) -> LongRows | None:
        """``examples`` only, optional: called before :meth:`encode`, which then gives at most ``max_length`` tokens.

        What happens to longer rows is the algorithm's (``on_long_row``); a row that it leaves out gives no sequence,
        and another one is drawn in its place. The package rl-algo-common has a base class that does all of it.

        Returns:
            the record of long rows; None: the core refuses them.
        """
        ...

    def start(self, directory: str) -> None:
        """Called once before the first step of a stage, with the stage's folder, for files of its own."""
        ...

    def keep(self, batch: SequenceBatch) -> np.ndarray:
        """``rollouts`` with ``max_resample_rounds``: bool [B], whole groups, which ones to train on."""
        ...

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """Train on ``batch``; returns flat metrics (``train/loss``, ``train/grad_norm``, …)."""
        ...

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """``examples`` only: held-out metrics (``eval/loss``, …) for an encoded batch, no training."""
        ...

    def state(self) -> Mapping[str, Any]:
        """JSON-serialisable state a resume needs (an adaptive coefficient, say); often empty."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""
        ...
