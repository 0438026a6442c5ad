"""Whether limits of completions and turns fit the model's context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rl_core.config.problems import Problem

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


def turn_limit_problems(stage: StageConfig) -> Iterator[Problem]:
    """Turns that can never be taken, because ``model.max_length`` ends every conversation before them."""
    if stage.environment is None or stage.generator is None:
        return
    config, limit, context = stage.environment.config, stage.max_tokens_per_turn, stage.model.max_length
    named = "max_tokens_per_turn" if config.max_tokens_per_turn else "generator.max_new_tokens"
    if 1 + limit > context:
        yield Problem(
            "environment.max_tokens_per_turn",
            f"{named} {limit} leaves no room for a prompt in model.max_length {context}",
            fix=f"set max_tokens_per_turn below {context}, or raise model.max_length",
        )
        return
    # A turn begins only where a full one fits; a turn and an answer have at least one token each.
    possible = 1 + (context - 1 - limit) // 2
    if config.max_turns > possible:
        yield Problem(
            "environment.max_turns",
            f"max_turns {config.max_turns} can never be reached: with {named} {limit}, at most {possible} turns fit "
            f"model.max_length {context}, even if all but the last have one token",
            fix=f"set max_turns: {possible} or lower, lower the tokens of a turn, or raise model.max_length",
        )


def completion_limit_problems(stage: StageConfig) -> Iterator[Problem]:
    """Limits of completions, the generator's and those of evaluators, that leave no room for a prompt."""
    if stage.generator is None:
        return
    environment = stage.environment
    if environment is None:
        yield from _no_room_for_a_prompt("generator", stage.generator.config, stage)
    if environment is None or environment.config.max_tokens_per_turn is None:  # else the environment's limit counts
        for index, evaluator in enumerate(stage.evaluators):
            yield from _no_room_for_a_prompt(f"evaluators.{index}", evaluator.config, stage)


def _no_room_for_a_prompt(section: str, config: Any, stage: StageConfig) -> Iterator[Problem]:
    """Whether a completion of ``max_new_tokens`` behind a prompt of one token is longer than ``model.max_length``."""
    longest, context = getattr(config, "max_new_tokens", None), stage.model.max_length
    if isinstance(longest, int) and 1 + longest > context:
        yield Problem(
            f"{section}.max_new_tokens",
            f"max_new_tokens {longest} leaves no room for a prompt in model.max_length {context}",
            fix=f"set max_new_tokens below {context}, or raise model.max_length",
        )
