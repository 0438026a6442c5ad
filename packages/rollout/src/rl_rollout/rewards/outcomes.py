"""One call of a reward: a checked score for each sample, or why there is none."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any

from rl_core.contracts.reward import Reward, Sample
from rl_core.errors import ConfigError, DataError, EnvironmentProblem, Interrupted, RLError, WorkerDied
from rl_isolation.describe import message_of, one_line, place_of, shown

ENDS_THE_RUN = (ConfigError, DataError, EnvironmentProblem, Interrupted, WorkerDied)
"""What these say is wrong with more than a sample: whatever ``on_error`` is, they stop the run."""


@dataclass(frozen=True)
class Failure:
    """Why there is no score.

    Attributes:
        reason: what the reward did, to stand after its name: ``raised KeyError: 'gold' (rewards.py:12)``.
        explained: ``reason`` is a whole message instead, which names the reward itself.
        late: it was ended by its deadline.
    """

    reason: str
    explained: bool = False
    late: bool = False


Outcome = dict[str, float] | Failure
"""A sample's ``reward`` with the further numbers that came with it, or a failure."""


def attempt(reward: Reward, samples: Sequence[Sample]) -> list[Outcome] | Failure:
    """Score ``samples`` in one call.

    Returns:
        one outcome per sample, in order; a single failure where the call gave no such list.

    Raises:
        ConfigError, DataError, EnvironmentProblem, WorkerDied: the reward raised it, about more than a sample.
    """
    try:
        scores: Any = reward.score(samples)
        if inspect.isawaitable(scores):
            scores = asyncio.run(_wait(scores))
        if isinstance(scores, str | bytes | dict) or not isinstance(scores, Iterable):
            return Failure(f"returned {shown(scores)}, not a list with one score per sample")
        scores = list(islice(scores, len(samples) + 1))  # an iterable may never end
    except ENDS_THE_RUN:
        raise
    except RLError as error:
        return Failure(str(error), explained=True)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary
        place = place_of(error)
        where = f" ({place})" if place else ""
        return Failure(f"raised {type(error).__name__}: {one_line(message_of(error))}{where}")
    if len(scores) != len(samples):
        count = len(scores) if len(scores) < len(samples) else f"more than {len(samples)}"
        return Failure(f"returned {count} scores for {len(samples)} samples")
    return [_outcome(score) for score in scores]


async def _wait(scores: Any) -> Any:
    return await scores


def _outcome(score: Any) -> Outcome:
    try:
        return _checked(score)
    except Exception as error:  # noqa: BLE001 - a value's own methods can raise anything
        return Failure(f"returned {shown(score)}; reading it raised {type(error).__name__}: {message_of(error)}")


def _checked(score: Any) -> Outcome:
    parts = score if isinstance(score, dict) else {"reward": score}
    if "reward" not in parts:
        return Failure(f"returned a dict without the key 'reward': {shown(score)}")
    numbers: dict[str, float] = {}
    for key, value in parts.items():
        number = _number(value)
        if not isinstance(number, float) or not isfinite(number):
            of = "" if key == "reward" else f" for {shown(key)}"
            why = number if isinstance(number, str) else "not a finite number"
            return Failure(f"returned {shown(number if isinstance(number, float) else value)}{of}, {why}")
        numbers[str(key)] = number
    return numbers


def _number(value: Any) -> float | str | None:
    """Of Python, numpy or torch, or why it is none; text that spells a number is none."""
    try:
        return None if isinstance(value, str | bytes) else float(value)
    except OverflowError:
        return "too large for a floating-point number"
    except Exception as error:  # noqa: BLE001 - its __float__ can raise anything
        if not hasattr(type(value), "__float__"):
            return None
        return f"whose __float__ raised {type(error).__name__}: {one_line(message_of(error))}"
