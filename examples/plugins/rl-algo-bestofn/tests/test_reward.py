from __future__ import annotations

import pytest
from rl_algo_bestofn.config import RepeatConfig
from rl_algo_bestofn.reward import Repeat
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError


def score(completion: str, answer: str = "7") -> dict[str, float]:
    reward = Repeat(RepeatConfig(name="repeat", length=4))
    return reward.score(
        [Sample(row={"answer": answer, "__where__": "rows.jsonl:3"}, prompt="", completion=completion)]
    )[0]


def test_every_mistake_costs_its_share():
    assert score("7777") == {"reward": 1.0, "characters": 4.0}
    assert score("7x77") == {"reward": 0.75, "characters": 4.0}
    assert score("777") == {"reward": 0.75, "characters": 3.0}
    assert score("77777") == {"reward": 0.75, "characters": 5.0}
    assert score("") == {"reward": 0.0, "characters": 0.0}


def test_a_row_without_a_single_character_is_named():
    with pytest.raises(DataError) as caught:
        score("7777", answer="77")
    assert str(caught.value) == "rows.jsonl:3: 'answer' must be a single character"
