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
    """One completion with everything a reward may look at.

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
    """Built as ``factory(config)`` in a process of its own, which is killed and started again where a call takes longer
    than ``timeout_s``; what the reward remembers between calls is then lost. It is built in the driver with
    ``timeout_s: null``, where its config says that it cannot hang (:attr:`RewardConfig.cannot_hang
    <rl_core.config.sections.RewardConfig.cannot_hang>`), and where its config defines ``timeout_s`` itself: then it
    keeps the deadline on its own. Only in the driver is the run's Ray cluster at hand.

    It may define ``close()``, called when a stage ends. ``DataError``, ``ConfigError``, ``EnvironmentProblem`` and
    ``WorkerDied`` stop the run with their message; for any other exception, a wrong number of scores or one that is not
    finite the config says what happens (``on_error``), after the samples were scored one by one.
    """

    def score(self, samples: Sequence[Sample]) -> Sequence[Score] | Awaitable[Sequence[Score]]:
        """One score per sample, in order, whatever the other samples are; may be a coroutine."""
        ...
