"""Scoring samples with the configured rewards."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl_core.contracts.reward import Reward, Sample, Score
from rl_core.errors import RLError

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice


class RewardPipeline:
    """The weighted sum of rewards, and of what the environment gave, with each reward's own mean as a metric."""

    def __init__(self, rewards: Sequence[tuple[ComponentChoice, Reward]]) -> None:
        self._rewards = list(rewards)
        self._one_at_a_time = threading.Lock()  # rollouts sampled ahead are scored beside an evaluation

    def score(self, samples: Sequence[Sample]) -> tuple[np.ndarray, dict[str, float]]:
        """``(rewards float32 [N], metrics)``; metrics are means over the samples.

        Raises:
            RLError: a reward raised, or gave the wrong number of scores or one that is no finite
                number; the message names the reward and its package.
        """
        with self._one_at_a_time:
            return self._score(samples)

    def _score(self, samples: Sequence[Sample]) -> tuple[np.ndarray, dict[str, float]]:
        total = np.array([s.environment_reward for s in samples], np.float64)
        metrics: dict[str, float] = {}
        for choice, reward in self._rewards:
            scores = self._call(choice, reward, samples)
            values = np.array([_value(choice, s, i) for i, s in enumerate(scores)], np.float64)
            total += choice.config.weight * values
            if len(self._rewards) > 1:
                metrics[f"rollout/{choice.name}/reward_mean"] = float(values.mean()) if len(values) else 0.0
            metrics |= _extra_means(choice, scores)
        return total.astype(np.float32), metrics

    def close(self) -> None:
        """Let rewards that hold processes or connections end them."""
        for _, reward in self._rewards:
            close = getattr(reward, "close", None)
            if close is not None:
                close()

    def _call(self, choice: ComponentChoice, reward: Reward, samples: Sequence[Sample]) -> Sequence[Score]:
        try:
            scores = reward.score(samples)
            if inspect.isawaitable(scores):
                scores = asyncio.run(_wait(scores))
        except RLError:
            raise
        except Exception as error:
            raise RLError(
                f"reward {choice.name!r} ({choice.package}) raised {type(error).__name__}: {error}"
            ) from error
        if len(scores) != len(samples):
            raise RLError(
                f"reward {choice.name!r} ({choice.package}) returned {len(scores)} scores for {len(samples)} samples"
            )
        return scores


async def _wait(scores):  # type: ignore[no-untyped-def]
    return await scores


def _value(choice: ComponentChoice, score: Score, index: int) -> float:
    if isinstance(score, dict):
        if "reward" not in score:
            raise RLError(
                f"reward {choice.name!r} ({choice.package}) returned a dict without the key 'reward' "
                f"for sample {index}: {score}"
            )
        score = score["reward"]
    try:
        value = float(score)
    except (TypeError, ValueError):
        raise RLError(
            f"reward {choice.name!r} ({choice.package}) returned {score!r} for sample {index}, not a number"
        ) from None
    if not math.isfinite(value):
        raise RLError(f"reward {choice.name!r} ({choice.package}) returned {value} for sample {index}")
    return value


def _extra_means(choice: ComponentChoice, scores: Sequence[Score]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for score in scores:
        if isinstance(score, dict):
            for key, value in score.items():
                if key != "reward":
                    sums.setdefault(key, []).append(float(value))
    return {f"rollout/{choice.name}/{key}": float(np.mean(values)) for key, values in sums.items()}
