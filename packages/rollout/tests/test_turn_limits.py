"""Completions and turns that do not fit the model's context."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rl_rollout.turn_limits import completion_limit_problems


@pytest.mark.parametrize(("limit", "turn", "count"), [(63, None, 0), (64, None, 1), (64, 8, 0)])
def test_an_evaluators_completions_leave_room_for_a_prompt_or_are_turns_with_a_limit_of_their_own(limit, turn, count):
    environment = SimpleNamespace(config=SimpleNamespace(max_tokens_per_turn=turn)) if turn else None
    stage = SimpleNamespace(
        model=SimpleNamespace(max_length=64),
        generator=SimpleNamespace(config=SimpleNamespace(max_new_tokens=8)),
        environment=environment,
        evaluators=(SimpleNamespace(config=SimpleNamespace(max_new_tokens=limit)),),
    )
    found = list(completion_limit_problems(stage))
    assert [problem.path for problem in found] == ["evaluators.0.max_new_tokens"] * count
