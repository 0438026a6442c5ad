"""A reward: scores finished samples."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Message

Score = float | dict[str, float]
"""A number, or a dict with ``reward`` and further numbers that become ``rollout/<reward name>/<key>`` metrics."""


@dataclass(frozen=True)
class Sample:
    """One completion with the inputs of a reward.

    Attributes:
        row: the data row, all columns included (``row["answer"]``).
        prompt: the prompt as text.
        completion: the completion as text, without special tokens; in a conversation the model's last turn.
        completion_tokens: number of tokens that the model wrote, over all turns.
        truncated: ended by a limit (length, in a conversation also turns) rather than on its own.
        messages: with an environment: everything said after the prompt, the model's turns as ``assistant``.
        environment_reward: with an environment: the sum of its rewards, which is part of the sample's reward.
    """

    row: Row
    prompt: str
    completion: str
    completion_tokens: int = 0
    truncated: bool = False
    metadata: dict[str, float] = field(default_factory=dict)
    messages: Sequence[Message] = ()
    environment_reward: float = 0.0


class Reward(Protocol):
    """Built as ``factory(config)`` in a separate process. If a call takes longer than ``timeout_s``, the process is
    killed and started again, and state that the reward kept between calls is lost. It is built in the driver with
    ``timeout_s: null``, if its config says that it cannot hang (:attr:`RewardConfig.cannot_hang
    <rl_core.config.sections.RewardConfig.cannot_hang>`), or if its config defines ``timeout_s`` itself and so enforces
    the deadline. The run's Ray cluster is available only in the driver.

    It may define ``close()``, called when a stage ends. ``DataError``, ``ConfigError``, ``EnvironmentProblem`` and
    ``WorkerDied`` stop the run with their message; after any other exception, a wrong number of scores or a score that
    is not finite, the samples are scored one by one, and ``on_error`` of the config decides about those that fail.
    """

    def score(self, samples: Sequence[Sample]) -> Sequence[Score] | Awaitable[Sequence[Score]]:
        """One score per sample, in order, independent of the other samples; may be a coroutine."""
        ...
