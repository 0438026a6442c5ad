"""A reward that is a function of the user's, with its results checked."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from rl_core.contracts.reward import Sample, Score
from rl_core.errors import RLError
from rl_core.functions import load_function

from rl_reward_rule.answers import place_of
from rl_reward_rule.config import FunctionConfig


class FunctionReward:
    """Calls ``function(samples, **arguments)``, or ``function(sample, **arguments)`` with ``per_sample``.

    The function gets :class:`rl_core.contracts.reward.Sample` objects and returns a number, or a
    dict of numbers with the key ``reward``, for each; it may be a coroutine function.
    """

    def __init__(self, config: FunctionConfig) -> None:
        self.config = config
        self._function: Callable[..., Any] = load_function(config.function)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score] | Awaitable[Sequence[Score]]:
        """One score per sample; a coroutine where the function is one.

        Raises:
            RLError: the function raised, or returned too few scores, too many, or one that is no
                finite number; the message names the reward, the function and the sample's row.
        """
        samples = list(samples)
        if self.config.per_sample:
            results = [self._call(sample, place_of(sample)) for sample in samples]
            if any(inspect.isawaitable(result) for result in results):
                return self._gather(results, samples)
            return self._checked(results, samples)
        result = self._call(samples, f"{len(samples)} samples")
        return self._await(result, samples) if inspect.isawaitable(result) else self._checked(result, samples)

    async def _await(self, result: Awaitable[Any], samples: list[Sample]) -> list[Score]:
        return self._checked(await self._guarded(result, f"{len(samples)} samples"), samples)

    async def _gather(self, results: list[Any], samples: list[Sample]) -> list[Score]:
        calls = (self._guarded(result, place_of(sample)) for result, sample in zip(results, samples, strict=True))
        return self._checked(await asyncio.gather(*calls), samples)

    def _call(self, argument: Any, place: str) -> Any:
        try:
            return self._function(argument, **self.config.arguments)
        except Exception as error:
            raise self._failed(error, place) from error

    async def _guarded(self, result: Any, place: str) -> Any:
        try:
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            raise self._failed(error, place) from error

    def _checked(self, scores: Any, samples: list[Sample]) -> list[Score]:
        if isinstance(scores, str | bytes | dict) or not isinstance(scores, Iterable):
            raise RLError(
                f"{self._who()} returned {scores!r}, not a list with one score per sample\n"
                "    return a list, or set per_sample: true if it scores one sample"
            )
        scores = list(scores)
        if len(scores) != len(samples):
            raise RLError(f"{self._who()} returned {len(scores)} scores for {len(samples)} samples")
        return [self._score(score, sample) for score, sample in zip(scores, samples, strict=True)]

    def _score(self, score: Any, sample: Sample) -> Score:
        if not isinstance(score, dict):
            return self._number(score, sample)
        if "reward" not in score:
            raise RLError(f"{self._who()} returned a dict without the key 'reward' for {place_of(sample)}: {score}")
        return {str(key): self._number(value, sample) for key, value in score.items()}

    def _number(self, value: Any, sample: Sample) -> float:
        if getattr(value, "ndim", None) == 0:  # a numpy or torch scalar
            value = value.item()
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise RLError(f"{self._who()} returned {value!r} for {place_of(sample)}, not a finite number")
        return float(value)

    def _failed(self, error: Exception, place: str) -> RLError:
        return RLError(f"{self._who()} raised {type(error).__name__} for {place}: {error}")

    def _who(self) -> str:
        return f"reward {self.config.name!r} ({self.config.function})"
