"""The weighted sum of a stage's rewards, and what happens to samples that a reward cannot score."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from rl_core.contracts.reward import Reward, Sample
from rl_core.errors import RLError

from rl_rollout.rewards.isolated import RewardProcess
from rl_rollout.rewards.outcomes import Failure, Outcome, attempt

if TYPE_CHECKING:
    from rl_core.component import ComponentChoice

logger = logging.getLogger(__name__)

_EXCERPT = 60
_ADVICE = (
    "set its on_error: zero (such a sample scores 0) or drop (it is left out of training); "
    "rollout/reward_failures counts them"
)


@dataclass(frozen=True)
class Scores:
    """What the rewards made of N samples.

    Attributes:
        rewards: float32 [N]; NaN where a failed reward has ``on_error: drop``: such a sample is not to be used.
        metrics: means over the samples that were scored.
        counts: where a reward's ``on_error`` is not ``error``: ``reward_failures`` (samples that a reward could not
            score), ``reward_timeouts`` (those of them that its deadline ended) and ``reward_dropped`` (samples).
    """

    rewards: np.ndarray
    metrics: dict[str, float]
    counts: dict[str, float]


class Scorer(Protocol):
    """Calls one reward, here or in a process."""

    def attempt(self, samples: Sequence[Sample]) -> list[Outcome] | Failure:
        """An outcome per sample, or why the call gave none."""
        ...

    def close(self) -> None:
        """Let it end what it holds."""
        ...


class InThisProcess:
    """Calls a reward where the pipeline runs; without a deadline."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    def attempt(self, samples: Sequence[Sample]) -> list[Outcome] | Failure:
        return attempt(self._reward, samples)

    def close(self) -> None:
        close = getattr(self._reward, "close", None)
        if close is not None:
            close()


def scorer(choice: ComponentChoice, build: Callable[[ComponentChoice], Any]) -> Scorer:
    """The reward as ``build`` makes it; with a deadline that the core keeps, built in a process instead."""
    timeout_s = choice.config.process_timeout_s
    if timeout_s is None:
        return InThisProcess(build(choice))
    return RewardProcess(
        who=_who(choice), reference=choice.component.factory, package=choice.package, config=choice.config
    )


class WeightedRewards:
    """Adds up rewards, and what the environment gave, with each reward's own mean as a metric.

    Where a call fails, its samples are scored one by one, so that ``on_error`` reaches only those that fail alone.
    """

    def __init__(self, rewards: Sequence[tuple[ComponentChoice, Scorer]]) -> None:
        self._rewards = list(rewards)
        self._counts = any(choice.config.on_error != "error" for choice, _ in self._rewards)
        self._one_at_a_time = threading.Lock()  # prefetched rollouts are scored during an evaluation

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score the samples with all rewards.

        Raises:
            RLError: a reward with ``on_error: error`` failed; the message names the reward, its package and the
                sample. Also, whatever ``on_error`` is, what a reward says of more than a sample (``DataError``, …).
        """
        with self._one_at_a_time:
            return self._score(samples)

    def close(self) -> None:
        """Let rewards that hold processes or connections end them."""
        for _, one in self._rewards:
            one.close()

    def _score(self, samples: Sequence[Sample]) -> Scores:
        total = np.array([s.environment_reward for s in samples], np.float64)
        dropped = np.zeros(len(samples), bool)
        metrics: dict[str, float] = {}
        failures: list[Failure] = []
        for choice, one in self._rewards:
            outcomes = _outcomes(choice, one, samples)
            failed = np.array([isinstance(outcome, Failure) for outcome in outcomes], bool)
            drops = choice.config.on_error == "drop"
            values = np.array([0.0 if isinstance(o, Failure) else o["reward"] for o in outcomes], np.float64)
            total += choice.config.weight * values
            dropped |= failed & drops
            failures += _told(choice, samples, outcomes)
            if len(self._rewards) > 1:
                own = values[~failed] if drops else values
                metrics[f"rollout/{choice.name}/reward_mean"] = float(own.mean()) if len(own) else 0.0
            metrics |= _extra_means(choice, outcomes)
        rewards = np.where(dropped, np.nan, total).astype(np.float32)
        return Scores(rewards, metrics, self._counted(failures, dropped))

    def _counted(self, failures: Sequence[Failure], dropped: np.ndarray) -> dict[str, float]:
        if not self._counts:
            return {}
        return {
            "reward_failures": float(len(failures)),
            "reward_timeouts": float(sum(failure.late for failure in failures)),
            "reward_dropped": float(dropped.sum()),
        }


def _outcomes(choice: ComponentChoice, one: Scorer, samples: Sequence[Sample]) -> list[Outcome]:
    """An outcome per sample; with ``on_error: error`` none of them a failure."""
    together = one.attempt(samples)
    stops = choice.config.on_error == "error"
    if isinstance(together, Failure) and together.explained and stops:
        raise RLError(f"{together.reason}\n    or {_ADVICE}")
    outcomes = _one_by_one(choice, one, samples, together) if isinstance(together, Failure) else together
    if stops:
        for sample, outcome in zip(samples, outcomes, strict=True):
            _stop_if_failed(choice, sample, outcome)
    return outcomes


def _one_by_one(choice: ComponentChoice, one: Scorer, samples: Sequence[Sample], together: Failure) -> list[Outcome]:
    """The samples scored alone, after scoring them ``together`` failed."""
    outcomes: list[Outcome] = []
    for sample in samples:
        alone = together if len(samples) == 1 else one.attempt([sample])
        outcomes.append(alone if isinstance(alone, Failure) else alone[0])
        if choice.config.on_error == "error":
            _stop_if_failed(choice, sample, outcomes[-1])
    if not any(isinstance(outcome, Failure) for outcome in outcomes):
        message = f"{_statement(choice, together)}, but scores each of the {len(samples)} samples alone"
        if choice.config.on_error == "error" and not together.late:
            raise RLError(f"{message}\n    fix how it scores several at once")
        logger.warning("%s; %s", message, "raise its timeout_s" if together.late else "which takes longer")
    return outcomes


def _stop_if_failed(choice: ComponentChoice, sample: Sample, outcome: Outcome) -> None:
    if not isinstance(outcome, Failure):
        return
    first = "raise its timeout_s, or" if outcome.late else "fix it, or"
    raise RLError(
        f"{_at(sample, outcome)}{_statement(choice, outcome)}\n"
        f"    the sample: prompt {_excerpt(sample.prompt)}, completion {_excerpt(sample.completion)}\n"
        f"    {first} {_ADVICE}"
    )


def _told(choice: ComponentChoice, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> list[Failure]:
    """The failures, after a warning that counts them and shows the first."""
    failed = [(s, o) for s, o in zip(samples, outcomes, strict=True) if isinstance(o, Failure)]
    if failed:
        sample, failure = failed[0]
        what = "left out" if choice.config.on_error == "drop" else "scored 0"
        logger.warning(
            "%s failed for %d of %d samples, which are %s; the first: %s%s",
            _who(choice),
            len(failed),
            len(samples),
            what,
            _at(sample, failure),
            failure.reason,
        )
    return [failure for _, failure in failed]


def _who(choice: ComponentChoice) -> str:
    detail = f"; {choice.config.distinguished_by}" if choice.config.distinguished_by else ""
    return f"reward {choice.name!r} ({choice.package}{detail})"


def _statement(choice: ComponentChoice, failure: Failure) -> str:
    return failure.reason if failure.explained else f"{_who(choice)} {failure.reason}"


def _at(sample: Sample, failure: Failure) -> str:
    """``file:line: `` of the sample's row, as far as known and not said already."""
    place = str(sample.row.get("__where__", ""))
    return f"{place}: " if place and not failure.explained else ""


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…")


def _extra_means(choice: ComponentChoice, outcomes: Sequence[Outcome]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for outcome in outcomes:
        if isinstance(outcome, dict):
            for key, value in outcome.items():
                if key != "reward":
                    sums.setdefault(key, []).append(value)
    return {f"rollout/{choice.name}/{key}": float(np.mean(values)) for key, values in sums.items()}
