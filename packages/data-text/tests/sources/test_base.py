"""Mapping, answers, system messages, hold-out, limits, bad rows and fingerprints, through the JSON-lines source."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from rl_core.errors import DataError
from rl_data_text.sources.base import holdout_mask


def message_of(source) -> str:
    with pytest.raises(DataError) as caught:
        source.load()
    return str(caught.value)


def test_columns_are_mapped_and_the_answer_is_extracted(gsm8k: str, jsonl: Callable) -> None:
    source = jsonl(gsm8k, prompt="question", completion="answer", answer="answer", answer_pattern="#### (.+)")
    rows = source.load()
    assert [row["answer"] for row in rows] == ["72", "10", "2,500"]
    assert rows[0]["prompt"] == rows[0]["question"]
    assert rows[0]["completion"].endswith("#### 72")
    assert rows[1]["__where__"] == f"{gsm8k}:2"
    assert source.report() == {"rows": 3, "skipped": 0}


def test_a_template_puts_columns_into_text(gsm8k: str, jsonl: Callable) -> None:
    rows = jsonl(gsm8k, prompt="Q: {question}\nA ({{short}}):").load()
    assert rows[1]["prompt"] == f"Q: {rows[1]['question']}\nA ({{short}}):"


def test_dotted_names_reach_into_objects_and_lists(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"data": {"turns": [{"text": "hi"}]}, "a.b": "flat", "a": {"b": "nested"}}])
    rows = jsonl(path, prompt="data.turns.0.text", answer="a.b", completion="{data.turns.0.text}!").load()
    assert (rows[0]["prompt"], rows[0]["answer"], rows[0]["completion"]) == ("hi", "flat", "hi!")


def test_columns_of_the_canonical_names_need_no_mapping(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "1+1=", "completion": "2", "level": 3}])
    (row,) = jsonl(path).load()
    assert row == {"prompt": "1+1=", "completion": "2", "level": 3, "__where__": f"{path}:1"}


def test_a_misspelt_column_is_an_error_with_the_nearest_name(gsm8k: str, jsonl: Callable) -> None:
    assert message_of(jsonl(gsm8k, prompt="questoin")) == (
        f"{gsm8k}:1: no column 'questoin' for 'prompt'; did you mean 'question'? (columns: question, answer)\n"
        "    fix the row, or set on_bad_row: skip to leave such rows out"
    )


def test_a_forgotten_mapping_is_an_error_that_lists_the_columns(gsm8k: str, jsonl: Callable) -> None:
    assert message_of(jsonl(gsm8k)).splitlines()[0] == (
        f"{gsm8k}:1: no 'prompt' and no 'messages' (columns: question, answer)"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "a row must be an object with named columns, this is a list"),
        ({"prompt": 3}, "'prompt' is a number, not a string or a list of messages"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a\ud800"}, "'prompt' holds half of a surrogate pair (\\ud800 at character 1)"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hi"}, "'messages' is a string, not a list of messages"),
        ({"messages": ["hi"]}, "messages[0] is a string, not an object with 'role' and 'content'"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "yo"}]},
            "messages[1] has role 'bot'; roles are system, developer, user, assistant, tool",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0]: no column 'content' for 'message' (columns: role)"),
        ({"prompt": [{"role": "user", "content": 1}]}, "prompt[0].content is a number, not a string"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_reason(
    row: object, reason: str, write_lines: Callable, jsonl: Callable
) -> None:
    path = write_lines([{"prompt": "good"}, row])
    assert message_of(jsonl(path)) == (
        f"{path}:2: {reason}\n    fix the row, or set on_bad_row: skip to leave such rows out"
    )


def test_an_answer_without_the_pattern_is_a_bad_row(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a", "answer": "no marker"}])
    assert message_of(jsonl(path, answer_pattern="#### (.+)")).splitlines()[0] == (
        f"{path}:1: answer_pattern '#### (.+)' does not occur in the answer 'no marker'"
    )


def test_skipped_rows_are_counted_and_the_first_three_are_logged(
    write_lines: Callable, jsonl: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines([{"prompt": "a"}, "{", {"prompt": 1}, "[]", {"prompt": ""}, {"prompt": "b"}])
    source = jsonl(path, on_bad_row="skip")
    with caplog.at_level(logging.WARNING):
        rows = source.load()
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert source.report() == {"rows": 2, "skipped": 4}
    assert caplog.messages == [
        f"{path}: skipped 4 of 6 rows:\n"
        f"    {path}:2: invalid JSON: Expecting property name enclosed in double quotes at column 2\n"
        f"    {path}:3: 'prompt' is a number, not a string or a list of messages\n"
        f"    {path}:4: a row must be an object with named columns, this is a list\n"
        "    and 1 more"
    ]


def test_no_usable_row_is_an_error(write_lines: Callable, jsonl: Callable) -> None:
    bad = write_lines(["{"], "bad.jsonl")
    assert message_of(jsonl(bad, on_bad_row="skip")) == (
        f"{bad}: none of its 1 rows can be used; the first: "
        f"{bad}:1: invalid JSON: Expecting property name enclosed in double quotes at column 2"
    )
    empty = write_lines([""], "empty.jsonl")
    assert message_of(jsonl(empty)) == f"{empty}: there are no rows"
    short = write_lines([{"prompt": "a"}], "short.jsonl")
    assert message_of(jsonl(short, skip_first=1)) == f"{short}: no rows after the first 1\n    lower skip_first"


def test_limit_and_skip_first_cut_by_position(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": str(i)} for i in range(6)])
    assert [row["prompt"] for row in jsonl(path, skip_first=2, limit=3).load()] == ["2", "3", "4"]


def test_limit_does_not_look_at_the_rows_behind_it(write_lines: Callable, jsonl: Callable) -> None:
    assert len(jsonl(write_lines([{"prompt": "a"}, "{"]), limit=1).load()) == 1


def test_train_and_holdout_share_no_row_and_miss_none(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": str(i)} for i in range(50)])
    train = [row["prompt"] for row in jsonl(path, holdout=12).load()]
    held = [row["prompt"] for row in jsonl(path, holdout=12, split="holdout").load()]
    assert (len(train), len(held)) == (38, 12)
    assert sorted(train + held, key=int) == [str(i) for i in range(50)]
    assert held != [str(i) for i in range(38, 50)]


def test_skipping_bad_rows_on_one_side_does_not_move_the_holdout(write_lines: Callable, jsonl: Callable) -> None:
    lines = [{"prompt": str(i)} for i in range(20)]
    clean = jsonl(write_lines(lines, "clean.jsonl"), holdout=5, split="holdout").load()
    bad = int(np.flatnonzero(~holdout_mask(20, 5))[0])
    dirty = write_lines([*lines[:bad], "{", *lines[bad + 1 :]], "dirty.jsonl")
    assert [r["prompt"] for r in jsonl(dirty, holdout=5, split="holdout").load()] == [r["prompt"] for r in clean]


def test_the_holdout_is_the_same_in_every_version() -> None:
    assert np.flatnonzero(holdout_mask(10, 3)).tolist() == [0, 3, 5]


def test_a_holdout_that_leaves_nothing_is_an_error(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a"}, {"prompt": "b"}])
    assert message_of(jsonl(path, holdout=2)) == (
        f"{path}: holdout: 2 leaves nothing to train on, there are only 2 rows\n    lower holdout"
    )


def test_a_system_message_turns_a_prompt_into_messages(write_lines: Callable, jsonl: Callable) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    path = write_lines([{"prompt": "hi"}, {"prompt": [{"role": "user", "content": "hi"}]}, {"messages": own}])
    rows = jsonl(path, system="Be brief.").load()
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert rows[0]["prompt"] == expected
    assert rows[1]["prompt"] == expected
    assert rows[2]["messages"] == own


def test_the_fingerprint_follows_content_and_fields_but_not_the_place(write_lines: Callable, jsonl: Callable) -> None:
    one = write_lines([{"prompt": "a", "q": "b"}], "one.jsonl")
    same = write_lines([{"prompt": "a", "q": "b"}], "same.jsonl")
    other = write_lines([{"prompt": "a", "q": "c"}], "other.jsonl")
    assert jsonl(one).fingerprint() == jsonl(same).fingerprint()
    assert jsonl(one).fingerprint() != jsonl(other).fingerprint()
    assert jsonl(one).fingerprint() != jsonl(one, prompt="q").fingerprint()
    assert jsonl(one).fingerprint() != jsonl(one, limit=1).fingerprint()
