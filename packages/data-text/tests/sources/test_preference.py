"""Pairs and labels in the forms that public preference data has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rl_core.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def reason(source) -> str:
    with pytest.raises(DataError) as caught:
        source.load()
    return str(caught.value).split("\n")[0].partition(":1: ")[2]


def pair_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["prompt"], row["chosen"], row["rejected"]


def test_pairs_of_texts_stay_as_they_are(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])
    assert pair_of(jsonl(path).load()[0]) == ("1+1=", "2", "3")


def test_conversations_are_split_at_their_last_message(write_lines: Callable, jsonl: Callable) -> None:
    shared = [user("Hi"), assistant("Hello"), user("1+1?")]
    path = write_lines([{"chosen": [*shared, assistant("2")], "rejected": [*shared, assistant("3")]}])
    assert pair_of(jsonl(path).load()[0]) == (shared, [assistant("2")], [assistant("3")])


@pytest.mark.parametrize(
    ("prompt", "before", "expected"),
    [
        ("1+1?", [user("1+1?")], [user("1+1?")]),
        ("1+1?", [], [user("1+1?")]),
        ([user("1+1?")], [], [user("1+1?")]),
        ([user("Hi")], [user("Hi"), assistant("Yes?"), user("1+1?")], [user("Hi"), assistant("Yes?"), user("1+1?")]),
        ([user("1+1?")], [assistant("Let me see.")], [user("1+1?"), assistant("Let me see.")]),
    ],
)
def test_a_prompt_next_to_conversations_is_not_doubled_nor_lost(
    prompt: Any, before: list[Any], expected: list[Any], write_lines: Callable, jsonl: Callable
) -> None:
    row = {"question": prompt, "chosen": [*before, assistant("2")], "rejected": [*before, assistant("3")]}
    path = write_lines([row])
    assert pair_of(jsonl(path, prompt="question").load()[0]) == (expected, [assistant("2")], [assistant("3")])


def test_supervised_training_on_the_chosen_conversation_gets_its_answer(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"chosen": [user("1+1?"), assistant("2")], "rejected": [user("1+1?"), assistant("3")]}])
    (row,) = jsonl(path, completion="chosen", system="Be brief.").load()
    assert row["completion"] == [assistant("2")]
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, user("1+1?")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        (
            {"prompt": "a", "chosen": "b", "rejected": [assistant("c")]},
            "'chosen' is a string and 'rejected' is a list; both must be text, or both lists of messages",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
            "'chosen' and 'rejected' are the same",
        ),
        (
            {
                "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
                "rejected": [user("a"), assistant("x"), user("c"), assistant("y")],
            },
            "'chosen' (4 messages) and 'rejected' (4) must share all but their last message, "
            "but they share the first 1",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a")]},
            "'chosen' (2 messages) and 'rejected' (1) must share all but their last message, "
            "but they share the first 1",
        ),
        (
            {"chosen": [user("a"), user("b")], "rejected": [user("a"), assistant("c")]},
            "the last message of 'chosen' is the user's, not the assistant's",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("")]},
            "the last message of 'rejected' is empty",
        ),
        (
            {"chosen": [assistant("b")], "rejected": [assistant("c")]},
            "no 'prompt', and 'chosen' and 'rejected' hold only the answer",
        ),
        ({"prompt": "", "chosen": [assistant("b")], "rejected": [assistant("c")]}, "'prompt' is empty"),
        (
            {"prompt": 3, "chosen": [assistant("b")], "rejected": [assistant("c")]},
            "'prompt' is a number, not text or a list of messages",
        ),
        (
            {"chosen": [user("a"), {"role": "bot", "content": "b"}], "rejected": [user("a"), assistant("c")]},
            "chosen[1] has role 'bot'; roles are system, developer, user, assistant, tool",
        ),
        (
            {"prompt": "a", "chosen": None, "rejected": "b"},
            "'chosen' is null, not a string or a list of messages",
        ),
    ],
)
def test_a_pair_without_a_preference_is_a_bad_row(
    row: dict[str, Any], expected: str, write_lines: Callable, jsonl: Callable
) -> None:
    assert reason(jsonl(write_lines([row]))) == expected


def test_labels_become_booleans(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a", "completion": "b", "label": label} for label in (True, False, 1, 0, 1.0)])
    assert [row["label"] for row in jsonl(path).load()] == [True, False, True, False, True]
    assert all(type(row["label"]) is bool for row in jsonl(path).load())


@pytest.mark.parametrize(
    ("label", "shown"), [("good", "'good'"), (2, "2"), (0.5, "0.5"), (None, "null"), ("true", "'true'")]
)
def test_any_other_label_is_a_bad_row(label: Any, shown: str, write_lines: Callable, jsonl: Callable) -> None:
    expected = (
        f"'label' is {shown}, not true or false (1 or 0); "
        "where it is no KTO label, name the completion's column (completion: completion) and it is left alone"
    )
    assert reason(jsonl(write_lines([{"prompt": "a", "completion": "b", "label": label}]))) == expected
    mapped = write_lines([{"prompt": "a", "completion": "b", "good": label}])
    assert reason(jsonl(mapped, label="good")) == expected


def test_a_label_of_another_meaning_is_left_alone(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a", "completion": "b", "label": "World"}])
    assert jsonl(path, completion="completion").load()[0]["label"] == "World"
    other = write_lines([{"prompt": "a", "label": 3}])
    assert jsonl(other).load()[0]["label"] == 3
