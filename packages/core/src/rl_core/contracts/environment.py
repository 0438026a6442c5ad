"""An environment: answers the model's turns until the conversation is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Message


@dataclass(frozen=True)
class Turn:
    """What an environment says after a model turn.

    Attributes:
        messages: appended to the conversation; their tokens are masked out of the loss.
        done: no further model turn follows.
        reward: added to the sample's reward.
    """

    messages: Sequence[Message] = ()
    done: bool = True
    reward: float = 0.0


class Environment(Protocol):
    """Built as ``factory(config)``; one instance serves many conversations, so state lives in ``start``'s value."""

    def start(self, row: Row) -> Any:
        """State for one conversation."""
        ...

    def step(self, state: Any, conversation: Sequence[Message]) -> Turn:
        """Answer the last assistant message."""
        ...
