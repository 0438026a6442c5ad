"""Where a step's batch comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rl_core.batch import SequenceBatch


@dataclass(frozen=True)
class Draw:
    """What a feed hands to the loop.

    Attributes:
        batch: the sequences of one step.
        metrics: ``rollout/…`` and ``time/…`` values of making it.
        samples: rows for the sample log.
    """

    batch: SequenceBatch
    metrics: dict[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()


class Feed(Protocol):
    """Makes the batch of each step."""

    @property
    def position(self) -> int:
        """Data rows drawn for the batches that were handed out: its whole state, from which a resume continues."""
        ...

    @property
    def samples(self) -> bool:
        """Whether it samples from the policy, so that generators need the weights of every step."""
        ...

    def next(self, step: int) -> Draw:
        """The batch of ``step`` (from 1), asked for when the weights of the step before have been published."""
        ...

    def close(self) -> None:
        """No further batch is asked for."""
        ...


class BatchSource(Protocol):
    """What feeds a stage: its rows as examples, or rollouts from them (:mod:`rl_core.contracts.rollout`)."""

    def encoding(self, *, position: int, steps: int) -> AbstractContextManager[None]:
        """A block in which the stage's workers start: rows are encoded meanwhile.

        Args:
            position: data rows that were drawn before.
            steps: how many are still to be trained.

        Raises:
            DataError: at the end of the block, a row of these steps cannot be used.
        """
        ...

    def feed(self, position: int) -> Feed:
        """Its batches after ``position`` rows; asked for once every model and generator is loaded."""
        ...
