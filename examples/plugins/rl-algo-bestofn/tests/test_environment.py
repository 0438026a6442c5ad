from __future__ import annotations

import pytest
from rl_algo_bestofn.config import GuessConfig
from rl_algo_bestofn.environment import Guess
from rl_core.contracts.environment import Turn
from rl_core.errors import DataError


def play(*guesses: str, max_turns: int = 5) -> list[Turn]:
    """What the environment says to each guess of the number 12."""
    environment = Guess(GuessConfig(name="guess", max_turns=max_turns))
    state, conversation, turns = environment.start({"answer": "12"}), [], []
    for guess in guesses:
        conversation.append({"role": "assistant", "content": guess})
        turns.append(environment.step(state, conversation))
        conversation.extend(turns[-1].messages)
    return turns


def says(hint: str) -> Turn:
    return Turn(messages=({"role": "user", "content": hint},), done=False)


def test_hints_lead_to_the_number_and_late_hits_are_worth_less():
    assert play("Is it 5?", "20", "12") == [says("higher"), says("lower"), Turn(done=True, reward=0.8**2)]


def test_words_are_asked_for_a_number():
    assert play("twelve") == [says("Say a whole number.")]


def test_the_game_ends_when_the_guesses_are_used_up():
    assert play("1", "2", max_turns=2) == [says("higher"), Turn(done=True, reward=0.0)]


def test_a_row_without_a_number_is_named():
    with pytest.raises(DataError) as caught:
        Guess(GuessConfig(name="guess")).start({"answer": "twelve", "__where__": "rows.jsonl:7"})
    assert str(caught.value) == "rows.jsonl:7: 'answer' must be a whole number"
