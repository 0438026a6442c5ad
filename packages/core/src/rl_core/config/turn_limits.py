"""Limits of completions and turns, and whether they fit the model's context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl_core.config.problems import Problem

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


def max_tokens_per_turn(stage: StageConfig) -> int:
    """Most tokens the model writes at a stretch; the stage has a generator."""
    assert stage.generator is not None
    given = stage.environment.config.max_tokens_per_turn if stage.environment is not None else None
    return given or stage.generator.config.max_new_tokens


def max_completion_tokens(stage: StageConfig) -> int:
    """Most tokens the model writes in one sequence, over all turns; the stage has a generator."""
    turns = stage.environment.config.max_turns if stage.environment is not None else 1
    return turns * max_tokens_per_turn(stage)


def completion_limit_name(stage: StageConfig) -> str:
    """The name of :func:`max_completion_tokens` in messages."""
    if stage.environment is None:
        return "generator.max_new_tokens"
    given = stage.environment.config.max_tokens_per_turn
    return f"environment.max_turns × {'max_tokens_per_turn' if given else 'generator.max_new_tokens'},"


def turn_limit_problems(stage: StageConfig) -> Iterator[Problem]:
    """Turns that can never be taken, because ``model.max_length`` ends every conversation before them.

    Paths are relative to the section ``environment``.
    """
    if stage.environment is None or stage.generator is None:
        return
    config, limit, context = stage.environment.config, max_tokens_per_turn(stage), stage.model.max_length
    named = "max_tokens_per_turn" if config.max_tokens_per_turn else "generator.max_new_tokens"
    if 1 + limit > context:
        yield Problem(
            "max_tokens_per_turn",
            f"{named} {limit} leaves no room for a prompt in model.max_length {context}",
            fix=f"set max_tokens_per_turn below {context}, or raise model.max_length",
        )
        return
    # A turn begins only where a full one fits; a turn and an answer have at least one token each.
    possible = 1 + (context - 1 - limit) // 2
    if config.max_turns > possible:
        yield Problem(
            "max_turns",
            f"max_turns {config.max_turns} can never be reached: with {named} {limit}, at most {possible} turns fit "
            f"model.max_length {context}, even if all but the last have one token",
            fix=f"set max_turns: {possible} or lower, lower the tokens of a turn, or raise model.max_length",
        )


def completion_limit_problems(stage: StageConfig) -> Iterator[Problem]:
    """A limit of completions that leaves no room for a prompt; paths are relative to the section ``generator``."""
    if stage.generator is not None and stage.environment is None:
        yield from no_room_for_a_prompt(stage.generator.config.max_new_tokens, stage)


def no_room_for_a_prompt(max_new_tokens: int, stage: StageConfig) -> Iterator[Problem]:
    """Whether a completion of ``max_new_tokens`` behind a prompt of one token is longer than ``model.max_length``."""
    context = stage.model.max_length
    if 1 + max_new_tokens > context:
        yield Problem(
            "max_new_tokens",
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in model.max_length {context}",
            fix=f"set max_new_tokens below {context}, or raise model.max_length",
        )
