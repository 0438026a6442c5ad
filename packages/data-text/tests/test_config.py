"""What the config models refuse, and how they read paths."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from rl_core.config.paths import SourceText
from rl_data_text.config import CharactersConfig, JsonlConfig, PythonConfig


def message_of(error: ValidationError) -> str:
    return error.errors()[0]["msg"]


def test_a_template_with_more_than_column_names_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        JsonlConfig(name="jsonl", path="a.jsonl", prompt="Q: {question!r}")
    assert message_of(caught.value) == (
        "Value error, in the template 'Q: {question!r}' a placeholder must be just a column name, like {question}"
    )


def test_a_lone_brace_is_refused() -> None:
    with pytest.raises(ValidationError, match="Single '}' encountered in format string"):
        JsonlConfig(name="jsonl", path="a.jsonl", prompt="Q: question}")


def test_an_answer_pattern_must_be_a_regular_expression() -> None:
    with pytest.raises(ValidationError) as caught:
        JsonlConfig(name="jsonl", path="a.jsonl", answer_pattern="#### (.+")
    assert message_of(caught.value) == (
        "Value error, not a regular expression: missing ), unterminated subpattern at position 5"
    )


def test_reading_the_holdout_needs_its_size() -> None:
    with pytest.raises(ValidationError) as caught:
        JsonlConfig(name="jsonl", path="a.jsonl", split="holdout")
    assert message_of(caught.value) == "Value error, split: holdout needs holdout: <number of rows>"


def test_relative_paths_start_at_the_config_file() -> None:
    config = JsonlConfig(name="jsonl", path=[SourceText("a.jsonl", "/runs"), SourceText("../b/*.jsonl", "/runs")])
    assert config.paths == ("/runs/a.jsonl", "/b/*.jsonl")
    assert PythonConfig(name="python", function=SourceText("rows.py:rows", "/runs")).function == "/runs/rows.py:rows"


def test_a_chat_template_is_text_or_a_path() -> None:
    inline = "{{ messages[0].content }}"
    assert CharactersConfig(name="characters", chat_template=inline).chat_template == inline
    path = CharactersConfig(name="characters", chat_template=SourceText("chat.jinja", "/runs")).chat_template
    assert path == "/runs/chat.jinja"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "hh", "prompt": "q"}, "format: hh makes the prompt from the transcripts; remove prompt"),
        (
            {"format": "hh_messages", "messages": "q"},
            "format: hh_messages makes the prompt from the transcripts; remove messages",
        ),
        ({"format": "hh", "system": "Hi"}, "a system message needs chat messages; set format: hh_messages"),
    ],
)
def test_transcripts_leave_no_room_for_another_prompt(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JsonlConfig(name="jsonl", path="a.jsonl", **fields)
    assert message_of(caught.value) == f"Value error, {message}"
