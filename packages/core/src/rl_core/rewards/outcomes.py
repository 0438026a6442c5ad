"""One call of a reward: a checked score for each sample, or why there is none."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rl_core.contracts.reward import Reward, Sample
from rl_core.errors import ConfigError, DataError, EnvironmentProblem, Interrupted, RLError, WorkerDied

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
            return Failure(f"returned {scores!r}, not a list with one score per sample")
        scores = list(scores)
    except ENDS_THE_RUN:
        raise
    except RLError as error:
        return Failure(str(error), explained=True)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary
        return Failure(f"raised {type(error).__name__}: {' '.join(str(error).split())}{_line_of(error)}")
    if len(scores) != len(samples):
        return Failure(f"returned {len(scores)} scores for {len(samples)} samples")
    return [_outcome(score) for score in scores]


async def _wait(scores: Any) -> Any:
    return await scores


def _outcome(score: Any) -> Outcome:
    parts = score if isinstance(score, dict) else {"reward": score}
    if "reward" not in parts:
        return Failure(f"returned a dict without the key 'reward': {score!r}")
    numbers: dict[str, float] = {}
    for key, value in parts.items():
        number = _number(value)
        if number is None or not isfinite(number):
            of = "" if key == "reward" else f" for {key!r}"
            return Failure(f"returned {(value if number is None else number)!r}{of}, not a finite number")
        numbers[str(key)] = number
    return numbers


def _number(value: Any) -> float | None:
    """Of Python, numpy or torch; text that spells a number is none."""
    try:
        return None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        return None


def _line_of(error: BaseException) -> str:
    """`` (file:line)`` that the exception comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
