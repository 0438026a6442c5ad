"""The rollout source ``standard``: batches sampled by the driver, of completions or of conversations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.environment import tools_of
from rl_core.contracts.feed import Feed
from rl_core.contracts.generator import SamplingParams
from rl_core.data.cursor import DataCursor
from rl_core.errors import DataError

from rl_rollout.conversations import Conversations
from rl_rollout.environment_calls import EnvironmentCalls
from rl_rollout.generators import load_generators, sampling_of, transport_of
from rl_rollout.prompts import Prompts
from rl_rollout.rewards.scoring import WeightedRewards, scorer
from rl_rollout.rollouts import RolloutFeed
from rl_rollout.samples import to_samples
from rl_rollout.seeds import request_seeds
from rl_rollout.staleness import BoundedStalenessFeed

if TYPE_CHECKING:
    from rl_core.component import ComponentChoice
    from rl_core.contracts.data import Row
    from rl_core.contracts.reward import Sample
    from rl_core.contracts.rollout import RolloutJob, RolloutWorkers
    from rl_core.training.colocation import Colocation

    from rl_rollout.config import StandardConfig
    from rl_rollout.router import Router
    from rl_rollout.transports.object_store import WeightTransport


@dataclass(frozen=True)
class _Generation:
    """How completions are made.

    Attributes:
        transport: the way of new weights to the generators.
        sampling: that of rollouts.
        conversations: multi-turn generation, where the stage has an environment.
    """

    router: Router
    transport: WeightTransport
    sampling: SamplingParams
    conversations: Conversations | None
    memory: Colocation


class StandardRollouts:
    """See :class:`rl_core.contracts.rollout.RolloutSource`."""

    def __init__(self, config: StandardConfig) -> None:
        self.config = config
        self._rewards: WeightedRewards | None = None
        self._environment: EnvironmentCalls | None = None
        self._started: _Generation | None = None

    def prepare(self, job: RolloutJob) -> None:
        """Build the stage's rewards and its environment."""
        self._job = job
        environment = job.stage.environment
        rewards = [(choice, scorer(choice, job.build)) for choice in job.stage.rewards]
        self._rewards = WeightedRewards(rewards) if rewards or environment is not None else None
        self._environment = _environment_calls(environment, job) if environment is not None else None

    def start(self, workers: RolloutWorkers) -> None:
        """Load the generators."""
        stage = self._job.stage
        router = load_generators(stage, workers)
        self._started = _Generation(
            router=router,
            transport=transport_of(stage, workers),
            sampling=sampling_of(stage, self._job.tokenizer),
            conversations=self._conversations(router),
            memory=workers.memory,
        )

    def publish(self, version: int) -> None:
        """Give the generators the policy's current weights; returns when they have them."""
        self._generation.router.renew_weights(self._generation.transport, version)

    @contextmanager
    def encoding(self, *, position: int, steps: int) -> Iterator[None]:
        """Encode the prompts of the next steps (with resampling: of as many as there may be) while the block lasts."""
        plan = self._job.algorithm.plan()
        count = steps * plan.rows_per_step * (plan.max_resample_rounds + 1)
        with self._prompts.prefetching(self._cursor(position), count):
            yield
        self._prompts.check(self._cursor(position), count)

    def feed(self, position: int) -> Feed:
        """Batches with the newest weights, or up to ``run.max_staleness`` steps ahead of training."""
        job, run, generation = self._job, self._job.stage.run, self._generation
        assert self._rewards is not None
        plan = job.algorithm.plan()
        feed = RolloutFeed(
            job.rows,
            algorithm=job.algorithm,
            tokenizer=job.tokenizer,
            plan=plan,
            cursor=self._cursor(position),
            router=generation.router,
            sampling=replace(generation.sampling, n=plan.group_size),
            rewards=self._rewards,
            stage=job.stage.name,
            seed=run.seed,
            prompts=self._prompts,
            samples_per_step=run.samples_per_step,
            conversations=generation.conversations,
            generating=generation.memory.generating,
        )
        if not run.max_staleness:
            return feed
        return BoundedStalenessFeed(feed, max_staleness=run.max_staleness, steps=run.steps)

    def generate(
        self, prompts: Sequence[np.ndarray], sampling: SamplingParams, *, seed: int, step: int
    ) -> SequenceBatch:
        """One completion of each prompt and sample, without the environment."""
        seeds = request_seeds(seed, "evaluation", step, len(prompts))
        requests = SequenceBatch.from_lists(prompts, sequence_columns={"seed": seeds})
        return self._generation.router.generate(requests, sampling)

    def complete(
        self, rows: Sequence[Row], sampling: SamplingParams, *, seed: int, step: int
    ) -> tuple[SequenceBatch, list[Sample]]:
        """The rows' prompts completed as in rollouts: by the generator, or in conversations with the environment.

        Raises:
            DataError: no prompt leaves room for a completion, or one cannot be used.
        """
        conversations, limit_name = self._generation.conversations, "the evaluator's max_new_tokens"
        if conversations is not None:
            sampling, limit_name = conversations.sampling(sampling), conversations.limit_name(limit_name)
        prompts = Prompts(
            rows,
            tokenizer=self._job.tokenizer,
            max_length=self._job.stage.model.max_length,
            max_new_tokens=sampling.max_new_tokens,
            on_long=self._on_long,
            tools=conversations.tools if conversations is not None else (),
            section="eval_data",
            limit_name=limit_name,
        )
        # In order, so that the first of them are the samples shown; the same rows at every evaluation.
        prompts.check_rows(range(len(rows)), level=logging.INFO if step else logging.WARNING)
        kept = [index for index in range(len(rows)) if len(prompts[index])]
        if not kept:
            raise DataError(f"none of the {len(rows):,} rows of eval_data leaves room for a completion")
        rows = [rows[index] for index in kept]
        if conversations is None:
            batch, messages = self.generate([prompts[index] for index in kept], sampling, seed=seed, step=step), None
        else:
            seeds = request_seeds(seed, "evaluation", step, len(kept))
            requests = SequenceBatch.from_lists([prompts[index] for index in kept], sequence_columns={"seed": seeds})
            done = conversations.run(requests, rows, sampling)
            batch, messages = done.batch, done.messages
        return batch, to_samples(batch, rows, self._job.tokenizer, messages=messages)

    def score(self, samples: Sequence[Sample]) -> tuple[np.ndarray, Mapping[str, float]]:
        """The weighted sum of the rewards, and how many samples could not be scored."""
        assert self._rewards is not None
        scores = self._rewards.score(samples)
        return scores.rewards, scores.counts

    def close(self) -> None:
        """Let the router, rewards and the environment end the threads, processes and connections they hold."""
        router = self._started.router if self._started is not None else None
        for part in (router, self._rewards, self._environment):
            if part is not None:
                part.close()

    @property
    def _generation(self) -> _Generation:
        assert self._started is not None
        return self._started

    @cached_property
    def _prompts(self) -> Prompts:
        """Those of the training data."""
        job, environment = self._job, self._job.stage.environment
        own = environment is not None and environment.config.max_tokens_per_turn is not None
        return Prompts(
            job.rows,
            tokenizer=job.tokenizer,
            max_length=job.stage.model.max_length,
            max_new_tokens=job.stage.max_tokens_per_turn,
            on_long=self._on_long,
            limit_name="environment.max_tokens_per_turn" if own else "generator.max_new_tokens",
            tools=tools_of(self._environment.environment) if self._environment is not None else (),
        )

    @property
    def _on_long(self) -> Any:
        return getattr(self._job.stage.algorithm.config, "on_long_prompt", "skip")

    def _cursor(self, position: int) -> DataCursor:
        return DataCursor(size=len(self._job.rows), seed=self._job.stage.run.seed, position=position)

    def _conversations(self, router: Router) -> Conversations | None:
        if self._environment is None:
            return None
        stage = self._job.stage
        return Conversations(
            self._environment,
            config=stage.environment.config,
            router=router,
            tokenizer=self._job.tokenizer,
            max_length=stage.model.max_length,
        )


def _environment_calls(choice: ComponentChoice, job: RolloutJob) -> EnvironmentCalls:
    return EnvironmentCalls(
        job.build(choice),
        name=f"environment {choice.name!r} ({choice.package})",
        timeout_s=choice.config.step_timeout_s,
        concurrency=choice.config.concurrency,
    )
