"""The reward: answers that equal the row's answer, however they are written."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence

from rl_core.contracts.reward import Sample, Score
from rl_core.errors import DataError
from rl_isolation.outcome import Outcome, Returned, TimedOut
from rl_isolation.pool import Pool
from rl_isolation.worker import Limits, Service

from rl_reward_math.config import MathConfig
from rl_reward_math.extraction import gold_answer, marked_answer
from rl_reward_math.verdict import Question, Verdict

_log = logging.getLogger(__name__)


class Math:
    r"""1.0 where the answer of the completion equals the answer of the row, else 0.0.

    The answer of a completion is its last ``\boxed{…}``, else what follows its last ``####``, else
    what math-verify finds in the whole text (unless ``require_marker``).
    """

    def __init__(self, config: MathConfig) -> None:
        self.config = config
        service = Service(
            "rl_reward_math.judge:Judge",
            (config.float_rounding,),
            f"reward {config.name!r} (rl-reward-math)",
            package="rl-reward-math",
            not_started="try `python -c 'import math_verify'`; if memory_mb is set, raise it",
            limits=Limits(memory_bytes=config.memory_mb << 20 if config.memory_mb else None),
        )
        self._pool = Pool(service, size=config.workers)

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return self._pool.pids

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One dict per sample: ``reward``, and ``timeout``, ``crashed`` and ``unparsed``, each 0 or 1.

        Safe in threads and in a running event loop (which it blocks).

        Raises:
            DataError: a row has no answer; the message names its line.
            EnvironmentProblem: the worker processes do not start.
        """
        questions: dict[int, Question] = {}
        for position, sample in enumerate(samples):
            gold, answer = self._gold(sample), marked_answer(sample.completion)
            if answer is not None:
                questions[position] = Question(gold=gold, answer=answer)
            elif not self.config.require_marker and sample.completion.strip():
                questions[position] = Question(gold=gold, answer=None, completion=sample.completion)
        verdicts = dict(zip(questions, self._verdicts(list(questions.values())), strict=True))
        return [self._score(verdicts.get(position, Verdict.UNPARSED)) for position in range(len(samples))]

    def close(self) -> None:
        """End the worker processes; the end of the program does the same."""
        self._pool.close()

    def _verdicts(self, questions: Sequence[Question]) -> list[Verdict]:
        outcomes = self._pool.map(questions, timeout_s=self.config.timeout_s)
        verdicts = [_verdict(outcome) for outcome in outcomes]
        late, lost = verdicts.count(Verdict.TIMEOUT), verdicts.count(Verdict.CRASHED)
        if late or lost:
            _log.warning(
                "reward %r: of %d verdicts %d took longer than %g s and %d ended with their worker",
                self.config.name,
                len(verdicts),
                late,
                self.config.timeout_s,
                lost,
            )
        return verdicts

    def _score(self, verdict: Verdict) -> dict[str, float]:
        has_verdict = verdict not in (Verdict.TIMEOUT, Verdict.CRASHED)
        return {
            "reward": float(verdict is Verdict.EQUAL) if has_verdict else self.config.timeout_reward,
            "timeout": float(verdict is Verdict.TIMEOUT),
            "crashed": float(verdict is Verdict.CRASHED),
            "unparsed": float(verdict is Verdict.UNPARSED),
        }

    def _gold(self, sample: Sample) -> str:
        row, column = sample.row, self.config.answer
        gold = gold_answer(row.get(column))
        if gold is not None:
            return gold
        place = row.get("__where__", "a data row")
        columns = [str(name) for name in row if not str(name).startswith("__")]
        if column in row:
            raise DataError(
                f"{place}: {column!r} is {_shown(row[column])}, which is no answer that reward "
                f"{self.config.name!r} can compare with\n    give the row text or a number, or leave it out"
            )
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{place}: there is no column {column!r}, which reward {self.config.name!r} compares with{hint} "
            f"(columns: {', '.join(columns)})\n"
            "    map it in the data section (answer: <column>), or set the reward's answer to one of the columns"
        )


def _verdict(outcome: Outcome) -> Verdict:
    if isinstance(outcome, Returned) and outcome.value in list(Verdict):
        return Verdict(outcome.value)
    return Verdict.TIMEOUT if isinstance(outcome, TimedOut) else Verdict.CRASHED


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes down
        return "a number of thousands of digits"
    return text if len(text) <= 200 else text[:200] + "…"
