"""Tools as a user writes them; the tests load this file by its path."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import Literal

from rl_core.contracts.environment import Turn

LIMIT = 3


def calculator(expression: str) -> str:
    """Compute a product.

    The second paragraph is for people.

    Args:
        expression: such as 2*3
    """
    left, right = expression.split("*")
    return str(int(left) * int(right))


def search(query: str, limit: int = LIMIT, order: Literal["new", "old"] = "new") -> list[str]:
    """Find pages."""
    return [f"{query} {order} {i}" for i in range(limit)]


async def fetch(page: str) -> dict[str, str]:
    """Get a page."""
    if page == "none":
        raise LookupError("no such page")
    return {"page": page, "text": "für alle"}


def everything(*words: str) -> str:
    return " ".join(words)


class Player:
    """No environment: it has no step."""

    def __init__(self, side: str = "x") -> None:
        self.side = side

    def start(self, row, seed):
        return seed


class Echo:
    """An environment, if a dull one."""

    def start(self, row, seed):
        return None

    def step(self, state, conversation):
        return Turn(done=True)


def sleeps() -> str:
    time.sleep(600)
    return "done"


def spins() -> str:
    """Holds Python's lock, which no thread could take from it."""
    return str(re.fullmatch("(a+)+b", "a" * 40))


def leaves() -> str:
    os._exit(3)


async def waits() -> str:
    await asyncio.sleep(600)
    return "done"
