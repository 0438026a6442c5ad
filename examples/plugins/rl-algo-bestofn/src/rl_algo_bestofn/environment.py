"""A conversation in which the model looks for a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_core.contracts.data import Row
from rl_core.contracts.environment import Turn
from rl_core.contracts.tokenizer import Message
from rl_core.errors import DataError

if TYPE_CHECKING:
    from rl_algo_bestofn.config import GuessConfig


@dataclass
class Game:
    """The state of one conversation: the environment itself serves many at once and keeps none."""

    number: int
    guesses: int = 0


class Guess:
    """Answers every guess with ``higher`` or ``lower`` until it is the row's ``answer``, or guesses run out."""

    def __init__(self, config: GuessConfig) -> None:
        self.config = config

    def start(self, row: Row, seed: int = 0) -> Game:
        """The state for one conversation; nothing here is random, so ``seed`` is not used.

        Raises:
            DataError: the row's ``answer`` is no whole number.
        """
        try:
            return Game(number=int(row["answer"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{row.get('__where__', 'a data row')}: 'answer' must be a whole number") from error

    def step(self, state: Game, conversation: Sequence[Message]) -> Turn:
        """Answer the model's last message; the tokens of what is said here are masked out of the loss."""
        state.guesses += 1
        found = re.search(r"-?\d+", str(conversation[-1]["content"]))
        guess = int(found[0]) if found else None
        if guess == state.number:
            return Turn(done=True, reward=self.config.decay ** (state.guesses - 1))
        if state.guesses >= self.config.max_turns:
            return Turn(done=True)
        if guess is None:
            hint = "Say a whole number."
        else:
            hint = "higher" if guess < state.number else "lower"
        return Turn(messages=({"role": "user", "content": hint},), done=False)
