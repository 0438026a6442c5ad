"""What the config models refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from rl_eval_heldout.config import AccuracyConfig


def test_several_greedy_completions_are_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        AccuracyConfig(name="accuracy", n=4)
    assert caught.value.errors()[0]["msg"] == (
        "Value error, n: 4 completions at temperature 0 would all be the same; set temperature: 1.0"
    )
    assert AccuracyConfig(name="accuracy", n=4, temperature=0.7).n == 4


@pytest.mark.parametrize("fields", [{"stop": [""]}, {"stop": ["a", "a"]}, {"temperature": 1e-30}])
def test_sampling_that_makes_no_sense_is_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        AccuracyConfig(name="accuracy", **fields)


@pytest.mark.parametrize(("limit", "turn", "count"), [(63, None, 0), (64, None, 1), (64, 8, 0)])
def test_completions_leave_room_for_a_prompt(limit: int, turn: int | None, count: int) -> None:
    environment = SimpleNamespace(config=SimpleNamespace(max_tokens_per_turn=turn)) if turn else None
    stage = SimpleNamespace(model=SimpleNamespace(max_length=64), environment=environment)
    found = list(AccuracyConfig(name="accuracy", max_new_tokens=limit).problems(stage))
    assert [problem.path for problem in found] == ["max_new_tokens"] * count
