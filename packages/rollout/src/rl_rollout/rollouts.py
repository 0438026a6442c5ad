"""Batches of completions: prompts, sampled with the newest weights, scored, and drawn again where asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Algorithm, BatchPlan
from rl_core.contracts.data import Row
from rl_core.contracts.feed import Draw
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample
from rl_core.contracts.tokenizer import Message, Tokenizer
from rl_core.data.cursor import DataCursor
from rl_core.errors import RLError
from rl_core.samples import completion_tokens, sample_rows

from rl_rollout.conversations import Conversations
from rl_rollout.prompts import Prompts
from rl_rollout.rewards.scoring import Scores, WeightedRewards
from rl_rollout.router import Router
from rl_rollout.samples import to_samples
from rl_rollout.seeds import request_seeds

MOST_EMPTY_STEPS = 3
"""After this many steps in a row without a single scored completion the run stops."""


@dataclass(frozen=True)
class _Round:
    """One round of sampling: scored completions of ``rows_per_step`` prompts, and those a failed reward dropped."""

    sampled: SequenceBatch
    samples: Sequence[Sample]
    scores: Scores
    rollout_s: float
    reward_s: float
    environment_s: float

    @property
    def batch(self) -> SequenceBatch:
        """What may be trained on; of a group all may be missing."""
        dropped = np.isnan(self.scores.rewards)
        return self.sampled.select(~dropped) if dropped.any() else self.sampled


class RolloutFeed:
    """Prompts, completed by the generator with the newest weights and scored by the rewards.

    With an environment (``conversations``) a completion is a conversation of several turns; everything after that is
    the same.

    With ``max_resample_rounds`` (dynamic sampling; Yu et al. 2025, DAPO, section 3.2) groups that the
    algorithm does not want are left out and further prompts drawn, until a step has
    ``rows_per_step`` groups or the rounds are used up; then the step is smaller, or, where nothing
    is worth keeping, as it was sampled.

    Completions that a failed reward dropped (``on_error: drop``) are in no batch, as if they had not been sampled.

    Args:
        generating: a block in which the generators have the memory of GPUs that they share with trainers.
    """

    samples = True

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        algorithm: Algorithm,
        tokenizer: Tokenizer,
        plan: BatchPlan,
        cursor: DataCursor,
        router: Router,
        sampling: SamplingParams,
        rewards: WeightedRewards,
        stage: str,
        seed: int,
        prompts: Prompts,
        samples_per_step: int,
        conversations: Conversations | None = None,
        generating: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._cursor = cursor
        self._rows = rows
        self._algorithm = algorithm
        self._tokenizer = tokenizer
        self._plan = plan
        self._router = router
        self._sampling = conversations.sampling(sampling) if conversations else sampling
        self._conversations = conversations
        self._rewards = rewards
        self._stage = stage
        self._seed = seed
        self._shown = samples_per_step
        self._prompts = prompts
        self._generating = generating
        self._empty_steps = 0

    @property
    def position(self) -> int:
        """Data rows drawn so far."""
        return self._cursor.position

    def next(self, step: int) -> Draw:
        with self._generating():
            return self._draw(step)

    def _draw(self, step: int) -> Draw:
        rounds, kept, groups = [], [], 0
        for number in range(self._plan.max_resample_rounds + 1):
            rounds.append(self._sample(step, number))
            batch = rounds[-1].batch
            if self._plan.max_resample_rounds and len(batch):
                batch = batch.select(self._algorithm.keep(batch))
            kept.append(batch)
            groups += len(np.unique(batch.sequence_columns["group"]))
            if groups >= self._plan.rows_per_step:
                break
        joined = SequenceBatch.concat([b for b in kept if len(b)] or [rounds[0].batch])
        batch = _first_groups(joined, self._plan.rows_per_step)
        self._check_that_rewards_work(step, batch)
        metrics = self._metrics(rounds)
        if self._plan.max_resample_rounds:
            sampled = len(rounds) * self._plan.rows_per_step
            metrics |= {"rollout/rounds": float(len(rounds)), "rollout/kept_fraction": groups / sampled}
        first = rounds[0]
        return Draw(batch, metrics, sample_rows(first.samples[: self._shown], first.scores.rewards))

    def close(self) -> None:
        """Nothing to end."""

    def _check_that_rewards_work(self, step: int, batch: SequenceBatch) -> None:
        self._empty_steps = 0 if len(batch) else self._empty_steps + 1
        if self._empty_steps == MOST_EMPTY_STEPS:
            raise RLError(
                f"stage {self._stage!r}, step {step}: for {MOST_EMPTY_STEPS} steps in a row, rewards failed for every "
                "completion and on_error: drop left nothing to train on\n"
                "    the warnings above say how they fail; fix them, then continue with `rl resume`"
            )

    def _sample(self, step: int, number: int) -> _Round:
        drawn = self._prompts.draw(self._cursor, self._plan.rows_per_step)
        seeds = request_seeds(self._seed, self._stage, step, len(drawn), round=number)
        requests = SequenceBatch.from_lists([self.prompt(i) for i in drawn], sequence_columns={"seed": seeds})
        started = time.perf_counter()
        rows = [self._rows[i] for i in drawn]
        batch, messages, environment_s = self._complete(requests, rows)
        generated = time.perf_counter()
        samples = to_samples(batch, rows, self._tokenizer, messages=messages)
        scores = self._rewards.score(samples)
        scored = time.perf_counter()
        batch = batch.with_columns(
            sequence={
                "group": batch.sequence_columns["request"] + number * len(drawn),
                "reward": scores.rewards,
                "temperature": np.full(len(batch), self._sampling.temperature, np.float32),
            }
        )
        return _Round(batch, samples, scores, generated - started, scored - generated, environment_s)

    def _complete(
        self, requests: SequenceBatch, rows: Sequence[Row]
    ) -> tuple[SequenceBatch, Sequence[Sequence[Message]] | None, float]:
        """Completions, or conversations with what was said in them and the seconds spent in the environment."""
        if self._conversations is None:
            return self._router.generate(requests, self._sampling), None, 0.0
        done = self._conversations.run(requests, rows, self._sampling)
        return done.batch, done.messages, done.environment_s

    def _metrics(self, rounds: Sequence[_Round]) -> dict[str, float]:
        """Over everything that was sampled, kept or not."""
        columns = [r.sampled.sequence_columns for r in rounds]
        tokens = np.concatenate([completion_tokens(r.sampled) for r in rounds])
        rollout_s = sum(r.rollout_s for r in rounds)
        named = reward_metrics([r.scores for r in rounds])
        if self._conversations is not None:
            named |= conversation_metrics(columns) | {"time/environment_s": sum(r.environment_s for r in rounds)}
        return (
            named
            | self._router.metrics()
            | {
                "rollout/completion_tokens_mean": float(tokens.mean()),
                "rollout/truncated_fraction": float(np.concatenate([c["truncated"] for c in columns]).mean()),
                "rollout/tokens_per_second": float(tokens.sum() / max(rollout_s, 1e-9)),
                "data/epoch": self._cursor.epoch,
                "time/rollout_s": rollout_s,
                "time/reward_s": sum(r.reward_s for r in rounds),
            }
        )

    def prompt(self, index: int) -> np.ndarray:
        """int32 [P]: the prompt tokens of a row; empty where it is left out.

        Raises:
            DataError: the row has no prompt, or no room for a completion in the context where that is an error.
        """
        return self._prompts[index]


def reward_metrics(scores: Sequence[Scores]) -> dict[str, float]:
    """Over what was scored in several rounds; failures are counted. Without any score there is no mean."""
    rewards = np.concatenate([s.rewards for s in scores])
    rewards = rewards[~np.isnan(rewards)]
    names = dict.fromkeys(name for s in scores for name in s.metrics)
    named = {name: float(np.mean([s.metrics[name] for s in scores if name in s.metrics])) for name in names}
    named |= {f"rollout/{name}": sum(s.counts[name] for s in scores) for name in scores[0].counts}
    if len(rewards):
        named |= {"rollout/reward_mean": float(rewards.mean()), "rollout/reward_std": float(rewards.std())}
    return named


def conversation_metrics(columns: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Means over conversations (and the number that the environment failed) from the sequence columns of batches."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([c[name] for c in columns])

    return {
        "rollout/turns_mean": float(joined("turns").mean()),
        "rollout/environment_tokens_mean": float(joined("environment_tokens").mean()),
        "rollout/environment_reward_mean": float(joined("environment_reward").mean()),
        "rollout/environment_errors": float(joined("environment_failed").sum()),
    }


def _first_groups(batch: SequenceBatch, count: int) -> SequenceBatch:
    """The sequences of the first ``count`` groups, in order."""
    wanted = np.unique(batch.sequence_columns["group"])[:count]
    keep = np.isin(batch.sequence_columns["group"], wanted)
    return batch if keep.all() else batch.select(keep)
