"""Nim against an opponent: an environment of its own, and the positions to start from.

A pile of matches; each side in turn takes one, two or three; who takes the last one wins. Whoever faces a multiple
of four loses against a perfect player. A model turn is one character, the number it takes, and the opponent's turn
comes back as text that ends with what is left: ``9`` → ``1`` → ``-2=6`` → ``2`` → …
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_core.contracts.environment import Turn

MOVES = (1, 2, 3)


def positions(largest: int = 9, repeat: int = 1) -> Iterator[dict[str, Any]]:
    """Piles that the side to move can win, ``repeat`` times each."""
    for pile in range(1, largest + 1):
        if pile % 4:
            yield from ({"prompt": str(pile), "pile": pile} for _ in range(repeat))


@dataclass
class Game:
    """One game: the matches that are left, and what the opponent draws from."""

    pile: int
    random: random.Random


class Nim:
    """1 for a won game, 0 for a lost one, -1 for a move that is none.

    Args:
        skill: how often the opponent plays perfectly; otherwise it takes any number.
    """

    def __init__(self, skill: float = 0.5) -> None:
        self.skill = skill

    def start(self, row: Mapping[str, Any], seed: int) -> Game:
        return Game(row["pile"], random.Random(seed))

    def step(self, state: Game, conversation: Sequence[Mapping[str, Any]]) -> Turn:
        move = conversation[-1]["content"]
        if move not in map(str, MOVES) or int(move) > state.pile:
            return Turn(done=True, reward=-1.0)
        state.pile -= int(move)
        if state.pile == 0:
            return Turn(done=True, reward=1.0)
        reply = self._reply(state)
        state.pile -= reply
        message = {"role": "user", "content": f"-{reply}={state.pile}"}
        return Turn(messages=[message], done=state.pile == 0)

    def _reply(self, state: Game) -> int:
        if state.pile % 4 and state.random.random() < self.skill:
            return state.pile % 4
        return state.random.choice([move for move in MOVES if move <= state.pile])
