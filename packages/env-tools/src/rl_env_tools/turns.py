"""Turns as JSON: what a process with the user's class answers, and what the driver believes of it."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

from rl_core.contracts.environment import Turn
from rl_isolation.describe import shown

_WRITE_A_MESSAGE = "a message is {'role': 'tool', 'content': 'text'}"


class InvalidTurn(Exception):
    """An answer that is not a turn; the message describes it and follows the environment's name."""


def turn_as_json(turn: Any) -> dict[str, Any]:
    """``{"turn": …}``, or ``{"refused": why}`` for what is no turn or has a reward that is no finite number."""
    if not isinstance(turn, Turn):
        return {"refused": f"returned {type(turn).__name__}, not an rl_core.contracts.environment.Turn"}
    if not isinstance(turn.reward, numbers.Real):
        return {"refused": f"returned the reward {shown(turn.reward)}, which is no number"}
    try:
        reward = float(turn.reward)
    except Exception as error:  # noqa: BLE001 - a __float__ can raise anything
        return {"refused": f"returned the reward {shown(turn.reward)}, which no float can hold: {type(error).__name__}"}
    if not math.isfinite(reward):
        return {"refused": f"returned the reward {shown(reward)}"}
    messages = [dict(message) if isinstance(message, Mapping) else message for message in turn.messages]
    return {"turn": {"messages": messages, "done": bool(turn.done), "reward": reward}}


def turn_from_json(told: Any) -> Turn:
    """The turn, checked: code in the process may have written anything.

    Raises:
        InvalidTurn: it is not one.
    """
    if not isinstance(told, dict) or set(told) != {"messages", "done", "reward"}:
        raise InvalidTurn(f"gave an answer that is no turn: {shown(told)}")
    messages, done, reward = told["messages"], told["done"], told["reward"]
    if not isinstance(done, bool):
        raise InvalidTurn(f"gave a turn with done={shown(done)}, which is neither true nor false")
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise InvalidTurn(f"returned the reward {shown(reward)}, which is no number")
    if not _finite(reward):
        raise InvalidTurn(f"returned the reward {shown(reward)}, which is not finite")
    if not isinstance(messages, list):
        raise InvalidTurn(f"returned the messages {shown(messages)}, which are no list")
    for message in messages:
        parts = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None,)
        if not all(isinstance(part, str) for part in parts):
            raise InvalidTurn(f"returned the message {shown(message)}; {_WRITE_A_MESSAGE}")
        if not _is_unicode(message):
            raise InvalidTurn(f"returned the message {shown(message)}, which is no valid Unicode")
    return Turn(messages=messages, done=done, reward=float(reward))


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False


def _is_unicode(message: dict[str, Any]) -> bool:
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
