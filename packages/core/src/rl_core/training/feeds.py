"""Where a stage's batches come from: its rows as tokens, and the feed that its config asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rl_core.config.turn_limits import max_tokens_per_turn
from rl_core.contracts.environment import tools_of
from rl_core.errors import ConfigError
from rl_core.rollout.conversations import Conversations
from rl_core.rollout.cursor import DataCursor
from rl_core.rollout.encodings import EncodedRows, Encodings, Prompts
from rl_core.rollout.feed import ExamplesFeed, Feed
from rl_core.rollout.prefetch import Prefetch
from rl_core.rollout.rollouts import RolloutFeed
from rl_core.rollout.router import Router
from rl_core.rollout.staleness import BoundedStalenessFeed

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig
    from rl_core.training.colocation import Colocation
    from rl_core.training.driver import DriverParts
    from rl_core.training.generation import Generation

PREFETCHED = 1
"""Batches of examples that are made while one is trained on: making one takes far less than a step."""


def build_feed(
    stage: StageConfig,
    driver: DriverParts,
    encoded: EncodedRows,
    *,
    generation: Generation | None,
    memory: Colocation,
    position: int,
) -> Feed:
    """The source of batches, continuing after ``position`` rows."""
    run, plan = stage.run, driver.algorithm.plan()
    cursor = DataCursor(size=len(driver.rows), seed=run.seed, position=position)
    if plan.input == "examples":
        assert isinstance(encoded, Encodings)
        return Prefetch(ExamplesFeed(encoded, plan=plan, cursor=cursor), depth=PREFETCHED, steps=run.steps)
    if generation is None or driver.rewards is None:
        raise ConfigError(
            f"algorithm {stage.algorithm.name!r} trains on rollouts, which need a generator and rewards\n"
            "    add both sections (and, in the plugin, needs=('generator', 'rewards') to the Component)"
        )
    assert isinstance(encoded, Prompts)
    feed = RolloutFeed(
        driver.rows,
        algorithm=driver.algorithm,
        tokenizer=driver.tokenizer,
        plan=plan,
        cursor=cursor,
        router=generation.router,
        sampling=replace(generation.sampling, n=plan.group_size),
        rewards=driver.rewards,
        stage=stage.name,
        seed=run.seed,
        prompts=encoded,
        samples_per_step=run.samples_per_step,
        conversations=generation.conversations,
        generating=memory.generating,
    )
    if not run.max_staleness:
        return feed
    return BoundedStalenessFeed(feed, max_staleness=run.max_staleness, steps=run.steps)


def encoded_rows(stage: StageConfig, driver: DriverParts) -> EncodedRows:
    """What the stage's steps are made of: examples, or prompts."""
    max_length, tokenizer = stage.model.max_length, driver.tokenizer
    if driver.algorithm.plan().input == "examples" or stage.generator is None:
        return Encodings(driver.rows, algorithm=driver.algorithm, tokenizer=tokenizer, max_length=max_length)
    environment = stage.environment
    own = environment is not None and environment.config.max_tokens_per_turn is not None
    return Prompts(
        driver.rows,
        tokenizer=tokenizer,
        max_length=max_length,
        max_new_tokens=max_tokens_per_turn(stage),
        on_long=getattr(stage.algorithm.config, "on_long_prompt", "skip"),
        limit_name="environment.max_tokens_per_turn" if own else "generator.max_new_tokens",
        tools=tools_of(driver.environment.environment) if driver.environment is not None else (),
    )


def coming_rows(stage: StageConfig, driver: DriverParts, done: int, position: int) -> tuple[DataCursor, int]:
    """The rows of the steps after ``done``: where they begin, and how many there are (with resampling: at most)."""
    plan = driver.algorithm.plan()
    cursor = DataCursor(size=len(driver.rows), seed=stage.run.seed, position=position)
    return cursor, (stage.run.steps - done) * plan.rows_per_step * (plan.max_resample_rounds + 1)


def conversations_of(stage: StageConfig, driver: DriverParts, router: Router) -> Conversations | None:
    """Multi-turn generation, where the stage has an environment."""
    if stage.environment is None or driver.environment is None:
        return None
    return Conversations(
        driver.environment,
        config=stage.environment.config,
        router=router,
        tokenizer=driver.tokenizer,
        max_length=stage.model.max_length,
    )
