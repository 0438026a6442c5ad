"""A reward in a process of its own, which is killed at its deadline and started again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import isfinite
from typing import Any

from rl_core.config.sections import RewardConfig
from rl_core.contracts.reward import Sample
from rl_core.discovery.references import resolve_reference
from rl_core.errors import ConfigError, DataError, EnvironmentProblem, WorkerDied
from rl_isolation.describe import cut
from rl_isolation.outcome import ProcessEnded, Raised, Returned, TimedOut
from rl_isolation.worker import Limits, Service, Worker, as_error

from rl_rollout.rewards.outcomes import Failure, Outcome, attempt

_IN_THE_DRIVER = "with timeout_s: null the reward runs in the driver"
_STOPS_THE_RUN = (ConfigError, DataError, EnvironmentProblem, WorkerDied)

logger = logging.getLogger(__name__)


class RewardProcess:
    """One reward in a process (:class:`rl_isolation.worker.Worker`).

    It is started at once, so that a slow import costs no time later, and again after it was killed or ended.

    Args:
        who: how messages call the reward, e.g. ``reward 'function' (rl-reward-rule)``.
        reference: the factory, ``"package.module:Class"``.
        package: the distribution it comes from.
        config: what the factory is called with; its ``timeout_s`` is the longest that one call may take.
    """

    def __init__(self, *, who: str, reference: str, package: str, config: RewardConfig) -> None:
        assert config.timeout_s is not None
        self._who = who
        self._timeout_s = config.timeout_s
        self._worker = Worker(
            Service(
                f"{__name__}:Scoring",
                (reference, package, config),
                who,
                not_started=f"what it printed is above; {_IN_THE_DRIVER}",
                not_sent=f"{_IN_THE_DRIVER}; or keep such objects out of rows and options",
                limits=Limits(memory_bytes=config.memory_mb << 20 if config.memory_mb else None),
            )
        )

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return self._worker.pid

    def attempt(self, samples: Sequence[Sample]) -> list[Outcome] | Failure:
        """One call, as :func:`.outcomes.attempt`; a failure also where it is late or its process ends.

        Raises:
            EnvironmentProblem: the process does not start.
            RLError: building the reward failed, or it raised an error that stops the run.
        """
        match self._worker.call(list(samples), timeout_s=self._timeout_s):
            case Returned(value):
                return _read(value, len(samples))
            case TimedOut() as late:
                if late.stacks:
                    logger.info(
                        "%s took longer than timeout_s: %g; its stacks:\n%s", self._who, self._timeout_s, late.stacks
                    )
                return Failure(f"took longer than timeout_s: {self._timeout_s:g}{late.place}", late=True)
            case ProcessEnded() as ended:
                return Failure(ended.reason)
            case Raised(unreadable=True, text=text):
                return Failure(f"runs in a process of its own, and its samples cannot be read there: {text}")
            case Raised(explained=True) as raised:
                error = as_error(raised)
                if isinstance(error, _STOPS_THE_RUN):
                    raise error
                return Failure(raised.message, explained=True)
            case Raised() as raised:
                return Failure(raised.reason)

    def close(self) -> None:
        """End the process, which may first close its reward; a later call starts it again."""
        self._worker.close()


class Scoring:
    """What answers in the process: a reward, whose outcomes become JSON.

    Args:
        reference, package, config: as of :class:`RewardProcess`.
    """

    def __init__(self, reference: str, package: str, config: Any) -> None:
        build: Any = resolve_reference(reference, package=package)
        self._reward = build(config)

    def __call__(self, samples: Sequence[Sample]) -> Any:
        """``[reason, explained]`` of a failure, or a list with that or a dict of numbers for each sample."""
        found = attempt(self._reward, samples)
        return {"failure": _told(found)} if isinstance(found, Failure) else {"outcomes": [_told(one) for one in found]}

    def close(self) -> None:
        """Let the reward close itself."""
        close = getattr(self._reward, "close", None)
        if close is not None:
            close()


def _told(outcome: Outcome) -> Any:
    return [outcome.reason, outcome.explained] if isinstance(outcome, Failure) else outcome


def _read(value: Any, count: int) -> list[Outcome] | Failure:
    """What :class:`Scoring` told; the user's code may have told something else."""
    try:
        if "failure" in value:
            return _outcome(value["failure"])  # type: ignore[return-value]
        outcomes = [_outcome(one) for one in value["outcomes"]]
    except (TypeError, ValueError, KeyError, OverflowError):
        outcomes = []
    if len(outcomes) != count:
        return Failure(f"gave an answer without a score for each of its {count} samples")
    return outcomes


def _outcome(told: Any) -> Outcome:
    if isinstance(told, list):
        reason, explained = told
        return Failure(cut(str(reason)), explained=explained is True)
    numbers = {key: float(number) for key, number in told.items() if isfinite(float(number))}
    if "reward" not in numbers or len(numbers) != len(told):
        raise ValueError("not a score")
    return numbers
