"""A rollout source: everything between the rows of the data and batches of scored completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.component import ComponentChoice
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.data import Row
from rl_core.contracts.feed import BatchSource
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.contracts.reward import Sample

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.tokenizer import Tokenizer


@dataclass(frozen=True)
class RolloutJob:
    """What a stage asks for, known before any worker starts.

    Attributes:
        stage: the :class:`rl_core.config.stage.StageConfig`, with the sections generator, environment and rewards.
        rows: the training data.
        algorithm: what the batches are for; its ``plan()`` says how large they are, its ``keep()`` which groups count.
        build: makes a component of a section, a reward for example, in this process.
    """

    stage: Any
    rows: Sequence[Row]
    tokenizer: Tokenizer
    algorithm: Algorithm
    build: Callable[[ComponentChoice], Any]


@dataclass(frozen=True)
class RolloutWorkers:
    """What there is to sample with, once the policy is loaded.

    Attributes:
        pool: the :class:`rl_core.cluster.pool.WorkerPool`; its ``generators`` have started and host nothing yet.
        most: generators there may be.
        policy: the :class:`rl_core.model.Model` whose weights they need.
        model, tokenizer_path: arguments of a generator's ``load``.
        context: of the generators.
        memory: the :class:`rl_core.training.colocation.Colocation` of GPUs that trainers and generators share: sampling
            goes in ``memory.generating()``.
    """

    pool: Any
    most: int
    policy: Any
    model: ModelSpec
    tokenizer_path: Path
    context: WorkerContext
    memory: Any


class RolloutSource(BatchSource, Protocol):
    """Built as ``factory(config)`` in the driver, one for each stage that samples or scores.

    Core starts the workers, loads the models and calls the algorithm. How completions are made is the source's:
    requests, environments, rewards, what is sampled ahead. The loop draws from :meth:`feed` and publishes weights
    after every step; nothing else happens between the two.

    Calls come in this order: :meth:`prepare`, :meth:`encoding` around the start of the workers, in it :meth:`start`,
    then :meth:`publish` and what needs the generators, at last :meth:`close`. After the failure of a worker all begins
    anew with another instance.
    """

    def prepare(self, job: RolloutJob) -> None:
        """Build what lives in the driver (rewards, the environment); Ray may not have started yet."""
        ...

    def start(self, workers: RolloutWorkers) -> None:
        """Load the generators; only where the stage has the section ``generator``."""
        ...

    def publish(self, version: int) -> None:
        """Give the generators the policy's weights of this moment as ``version``; returns when they may be trained on.

        Called before the first batch is drawn and after every step, with ``version`` one higher each time.
        """
        ...

    def generate(
        self, prompts: Sequence[np.ndarray], sampling: SamplingParams, *, seed: int, step: int
    ) -> SequenceBatch:
        """Completions of int32 ``prompts`` with the newest weights, in order; a function of the arguments and weights.

        One turn, whatever the environment. See :meth:`rl_core.contracts.generator.Generator.generate` for the columns.
        """
        ...

    def complete(
        self, rows: Sequence[Row], sampling: SamplingParams, *, seed: int, step: int
    ) -> tuple[SequenceBatch, list[Sample]]:
        """The prompts of ``rows`` completed as in rollouts, in conversations where there is an environment."""
        ...

    def score(self, samples: Sequence[Sample]) -> tuple[np.ndarray, Mapping[str, float]]:
        """The weighted rewards, float32 [N] with NaN for a sample to be dropped, and counts of failures by name."""
        ...

    def close(self) -> None:
        """End the processes and connections that it holds."""
        ...
