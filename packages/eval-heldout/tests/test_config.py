"""What the config models refuse."""

from __future__ import annotations

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
