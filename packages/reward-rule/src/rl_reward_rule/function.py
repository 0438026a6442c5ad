"""A reward that is a function of the user's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from rl_core.contracts.reward import Sample, Score
from rl_core.errors import ConfigError
from rl_isolation.functions import load_function

from rl_reward_rule.config import FunctionConfig


class FunctionReward:
    """Calls ``function(samples, **arguments)``, or ``function(sample, **arguments)`` with ``per_sample``.

    The function gets :class:`rl_core.contracts.reward.Sample` objects and returns a number, or a
    dict of numbers with the key ``reward``, for each; it may be a coroutine function. What it raises
    or returns instead is the framework's to judge (``on_error``).
    """

    def __init__(self, config: FunctionConfig) -> None:
        self.config = config
        self._function: Callable[..., Any] = load_function(config.function)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score] | Awaitable[Sequence[Score]]:
        """One score per sample; a coroutine where the function is one.

        Raises:
            ConfigError: the function returned no list, as one for single samples does.
        """
        samples = list(samples)
        if self.config.per_sample:
            results = [self._function(sample, **self.config.arguments) for sample in samples]
            return _gather(results) if any(inspect.isawaitable(result) for result in results) else results
        result = self._function(samples, **self.config.arguments)
        return self._await(result) if inspect.isawaitable(result) else self._listed(result)

    async def _await(self, result: Awaitable[Any]) -> list[Score]:
        return self._listed(await result)

    def _listed(self, scores: Any) -> list[Score]:
        if isinstance(scores, str | bytes | dict) or not isinstance(scores, Iterable):
            raise ConfigError(
                f"reward {self.config.name!r} ({self.config.function}) returned {scores!r}, not a list with one score "
                "per sample\n    return a list, or set per_sample: true if it scores one sample"
            )
        return list(scores)


async def _gather(results: Iterable[Any]) -> list[Score]:
    """Those that are coroutines are run at once."""

    async def value(result: Any) -> Score:
        return await result if inspect.isawaitable(result) else result

    return await asyncio.gather(*(value(result) for result in results))
