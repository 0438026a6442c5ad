"""Where a step's batch comes from: encoded examples, or completions sampled from prompts and scored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rl_core.batch import UNIT, SequenceBatch
from rl_core.contracts.algorithm import Algorithm, BatchPlan
from rl_core.contracts.data import Row
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.reward import Sample
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.errors import DataError
from rl_core.rollout.cursor import DataCursor, request_seeds
from rl_core.rollout.rewards import RewardPipeline
from rl_core.rollout.router import Router

_CACHED_TOKENS = 50_000_000
"""Encoded tokens kept in memory (int32 and a float32 mask: 400 MB at most)."""


@dataclass(frozen=True)
class Draw:
    """What a feed hands to the loop.

    Attributes:
        batch: the sequences of one step.
        metrics: ``rollout/…`` and ``time/…`` values of making it.
        samples: rows for the sample log.
    """

    batch: SequenceBatch
    metrics: dict[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()


class Feed(Protocol):
    """Supplies the batch of each step.

    Attributes:
        cursor: position in the data, its whole state.
        samples: whether it samples from the policy, so that the generator needs its newest weights.
    """

    cursor: DataCursor
    samples: bool

    def next(self, step: int) -> Draw:
        """The batch of ``step`` (from 1)."""
        ...


class ExamplesFeed:
    """Rows encoded by the algorithm (SFT, preference pairs); encodings are kept between epochs."""

    samples = False

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        algorithm: Algorithm,
        tokenizer: Tokenizer,
        plan: BatchPlan,
        cursor: DataCursor,
        max_length: int,
    ) -> None:
        self.cursor = cursor
        self._rows = rows
        self._algorithm = algorithm
        self._tokenizer = tokenizer
        self._plan = plan
        self._max_length = max_length
        self._cache: dict[int, SequenceBatch] = {}
        self._cached_tokens = 0

    def next(self, step: int) -> Draw:
        started = time.perf_counter()
        batch = join_rows([self._encoded(int(i)) for i in self.cursor.draw(self._plan.rows_per_step)])
        if not len(batch):
            raise DataError(f"step {step}: none of the {self._plan.rows_per_step} rows drawn can be trained on")
        return Draw(batch, {"data/epoch": self.cursor.epoch, "time/data_s": time.perf_counter() - started})

    def _encoded(self, index: int) -> SequenceBatch:
        encoded = self._cache.get(index)
        if encoded is None:
            row = self._rows[index]
            encoded = self._algorithm.encode([row], self._tokenizer)
            longest = int(encoded.lengths.max(initial=0))
            if longest > self._max_length:
                raise DataError(
                    f"{row.get('__where__', f'row {index}')}: the example has {longest} tokens, more than "
                    f"model.max_length {self._max_length}\n    raise model.max_length, or shorten or drop the row "
                    "(algorithm.max_tokens, algorithm.on_long_row)"
                )
            if self._cached_tokens < _CACHED_TOKENS:
                self._cache[index] = encoded
                self._cached_tokens += len(encoded.tokens)
        return encoded


class RolloutFeed:
    """Prompts, completed by the generator with the newest weights and scored by the rewards."""

    samples = True

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        tokenizer: Tokenizer,
        plan: BatchPlan,
        cursor: DataCursor,
        router: Router,
        sampling: SamplingParams,
        rewards: RewardPipeline,
        stage: str,
        seed: int,
        max_length: int,
        samples_per_step: int,
    ) -> None:
        self.cursor = cursor
        self._rows = rows
        self._tokenizer = tokenizer
        self._plan = plan
        self._router = router
        self._sampling = sampling
        self._rewards = rewards
        self._stage = stage
        self._seed = seed
        self._max_length = max_length
        self._shown = samples_per_step
        self._prompts: dict[int, np.ndarray] = {}

    def next(self, step: int) -> Draw:
        drawn = [int(i) for i in self.cursor.draw(self._plan.rows_per_step)]
        requests = SequenceBatch.from_lists(
            [self.prompt(i) for i in drawn],
            sequence_columns={"seed": request_seeds(self._seed, self._stage, step, len(drawn))},
        )
        started = time.perf_counter()
        batch = self._router.generate(requests, self._sampling)
        generated = time.perf_counter()
        samples = to_samples(batch, [self._rows[i] for i in drawn], self._tokenizer)
        rewards, metrics = self._rewards.score(samples)
        scored = time.perf_counter()
        batch = batch.with_columns(
            sequence={
                "group": batch.sequence_columns["request"],
                "reward": rewards,
                "temperature": np.full(len(batch), self._sampling.temperature, np.float32),
            }
        )
        completion_tokens = batch.lengths - batch.sequence_columns["prompt_length"]
        metrics |= {
            "rollout/reward_mean": float(rewards.mean()),
            "rollout/reward_std": float(rewards.std()),
            "rollout/completion_tokens_mean": float(completion_tokens.mean()),
            "rollout/truncated_fraction": float(batch.sequence_columns["truncated"].mean()),
            "rollout/tokens_per_second": float(completion_tokens.sum() / max(generated - started, 1e-9)),
            "data/epoch": self.cursor.epoch,
            "time/rollout_s": generated - started,
            "time/reward_s": scored - generated,
        }
        return Draw(batch, metrics, sample_rows(samples[: self._shown], rewards))

    def prompt(self, index: int) -> np.ndarray:
        """int32 [P]: the prompt tokens of a row.

        Raises:
            DataError: the row has no prompt, or no room for a completion in the context.
        """
        tokens = self._prompts.get(index)
        if tokens is None:
            tokens = encode_prompt(
                self._rows[index],
                tokenizer=self._tokenizer,
                max_length=self._max_length,
                max_new_tokens=self._sampling.max_new_tokens,
            )
            self._prompts[index] = tokens
        return tokens


def encode_prompt(row: Row, *, tokenizer: Tokenizer, max_length: int, max_new_tokens: int) -> np.ndarray:
    """int32 [P]: a row's prompt, checked to leave room for a completion."""
    where = row.get("__where__", "a data row")
    if "prompt" not in row:
        raise DataError(
            f"{where}: there is no 'prompt' column (columns: {', '.join(k for k in row if not k.startswith('__'))})\n"
            "    map one in the data section, e.g. prompt: question"
        )
    tokens = tokenizer.encode_prompt(row["prompt"])
    if not len(tokens):
        raise DataError(f"{where}: the prompt is empty")
    if len(tokens) + max_new_tokens > max_length:
        raise DataError(
            f"{where}: the prompt has {len(tokens)} tokens; with generator.max_new_tokens {max_new_tokens} that is "
            f"more than model.max_length {max_length}\n    raise model.max_length, lower generator.max_new_tokens, "
            "or drop the row"
        )
    return tokens


def to_samples(batch: SequenceBatch, rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample]:
    """Decode generated sequences; ``rows[request]`` is each one's data row."""
    samples = []
    prompts: dict[int, str] = {}  # a group shares its prompt, which is decoded once
    for i in range(len(batch)):
        tokens = batch.tokens[batch.sequence(i)]
        cut = int(batch.sequence_columns["prompt_length"][i])
        request = int(batch.sequence_columns["request"][i])
        if request not in prompts:
            prompts[request] = tokenizer.decode(tokens[:cut])
        samples.append(
            Sample(
                row=rows[request],
                prompt=prompts[request],
                completion=tokenizer.decode(tokens[cut:]),
                completion_tokens=len(tokens) - cut,
                truncated=bool(batch.sequence_columns["truncated"][i]),
            )
        )
    return samples


def sample_rows(samples: Sequence[Sample], rewards: np.ndarray) -> list[dict[str, Any]]:
    """Samples as plain rows for loggers."""
    return [
        {"prompt": s.prompt, "completion": s.completion, "answer": s.row.get("answer"), "reward": float(r)}
        for s, r in zip(samples, rewards, strict=False)
    ]


def join_rows(parts: Sequence[SequenceBatch]) -> SequenceBatch:
    """Concatenate separately encoded rows; ``unit`` ids, which count from 0 in each, are made distinct."""
    shifted, next_unit = [], 0
    for part in parts:
        if UNIT in part.sequence_columns and len(part):
            units = part.sequence_columns[UNIT]
            shifted.append(part.with_columns(sequence={UNIT: units + next_unit}))
            next_unit += int(units.max()) + 1
        elif len(part):
            shifted.append(part)
    return SequenceBatch.concat(shifted)
