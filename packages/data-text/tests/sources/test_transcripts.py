"""Pairs of whole transcripts, in the form of the HH-RLHF files."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.errors import DataError

START = "\n\nHuman: May I pet it?\n\nAssistant: Which animal?\n\nHuman: A bear.\n\nAssistant:"
ROWS = [
    {"chosen": f"{START} Better not.", "rejected": f"{START} Sure, go on!"},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello, you fool."},
]


def text_of(answer: str | list[dict[str, str]]) -> str:
    """An answer as text: it is one, or the assistant's one message."""
    if isinstance(answer, str):
        return answer
    (message,) = answer
    assert message["role"] == "assistant"
    return message["content"]


def reason(source, path: str) -> str:
    with pytest.raises(DataError) as caught:
        source.load()
    first, fix = str(caught.value).split("\n")
    assert fix == "    fix the row, or set on_bad_row: skip to leave such rows out"
    return first.removeprefix(f"{path}:1: ")


def test_the_prompt_is_what_both_share_up_to_the_last_answer(write_lines: Callable, jsonl: Callable) -> None:
    first, second = jsonl(write_lines(ROWS), format="hh").load()
    assert (first["prompt"], first["chosen"], first["rejected"]) == (START, " Better not.", " Sure, go on!")
    # Both answers begin with "Hello": the cut is at the turn, not at the first difference.
    assert (second["prompt"], second["chosen"]) == ("\n\nHuman: Hi\n\nAssistant:", " Hello.\n")
    for row, raw in zip((first, second), ROWS, strict=True):
        assert row["prompt"] + row["chosen"] == raw["chosen"]
        assert row["prompt"] + row["rejected"] == raw["rejected"]


def test_the_prompt_can_become_chat_messages(write_lines: Callable, jsonl: Callable) -> None:
    first, second = jsonl(write_lines(ROWS), format="hh_messages", system="Be kind.").load()
    assert first["prompt"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "May I pet it?"},
        {"role": "assistant", "content": "Which animal?"},
        {"role": "user", "content": "A bear."},
    ]
    assert (text_of(first["chosen"]), text_of(first["rejected"])) == ("Better not.", "Sure, go on!")
    assert (text_of(second["chosen"]), text_of(second["rejected"])) == ("Hello.", "Hello, you fool.")


def test_zipped_files_and_other_column_names_work(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    renamed = [{"good": row["chosen"], "bad": row["rejected"]} for row in ROWS]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, renamed)).encode()))
    rows = jsonl(str(path), format="hh", chosen="good", rejected="bad").load()
    assert [row["chosen"] for row in rows] == [" Better not.", " Hello.\n"]
    assert rows[1]["__where__"] == f"{path}:2"


def test_supervised_training_can_learn_the_chosen_answers(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"good": ROWS[0]["chosen"], "rejected": ROWS[0]["rejected"]}])
    for column in ("good", "chosen"):
        (row,) = jsonl(path, format="hh", chosen="good", completion=column).load()
        assert (row["prompt"], row["completion"]) == (START, " Better not.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "'chosen' and 'rejected' share no beginning up to an 'Assistant:' turn",
        ),
        (
            {"chosen": f"{START} No.", "rejected": f"{START}  No."},
            "'chosen' and 'rejected' have the same answer",
        ),
        ({"chosen": f"{START} No.", "rejected": f"{START} \n"}, "the last answer of 'rejected' is empty"),
        (
            {"chosen": f"{START} No.", "rejected": f"{START} Yes.\n\nHuman: Ouch!\n\nAssistant: Oh."},
            "'chosen' and 'rejected' differ before the last answer: 'rejected' has further turns after it",
        ),
        (
            {"chosen": f"{START} No.", "reject": "x"},
            "no column 'rejected' for 'rejected'; did you mean 'reject'? (columns: chosen, reject)",
        ),
        ({"chosen": f"{START} No.", "rejected": None}, "'rejected' is null, not a transcript"),
    ],
)
def test_a_pair_that_cannot_be_split_is_a_bad_row(
    row: dict, expected: str, write_lines: Callable, jsonl: Callable
) -> None:
    path = write_lines([row])
    assert reason(jsonl(path, format="hh"), path) == expected


def test_messages_need_turns_and_nothing_else(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"chosen": f"Note.{START} a", "rejected": f"Note.{START} b"}])
    assert reason(jsonl(path, format="hh_messages"), path) == (
        "the transcript has text in front of its first 'Human:' turn"
    )
    path = write_lines([{"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}])
    assert reason(jsonl(path, format="hh_messages"), path) == "the transcript has no turn before the answer"


def test_transcripts_without_the_format_are_an_error_that_names_it(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines(ROWS)
    assert reason(jsonl(path), path) == (
        "no 'prompt', and 'chosen' is a whole transcript; set format: hh (or hh_messages) to split it"
    )


@pytest.mark.skipif("RL_DATASETS" not in os.environ, reason="RL_DATASETS names no folder with hh-rlhf/")
@pytest.mark.parametrize("form", ["hh", "hh_messages"])
def test_the_real_file_is_read_but_for_eight_rows(form: str, jsonl: Callable, caplog: pytest.LogCaptureFixture) -> None:
    path = str(Path(os.environ["RL_DATASETS"], "hh-rlhf", "harmless-base.jsonl.gz"))
    source = jsonl(path, format=form, on_bad_row="skip")
    with caplog.at_level(logging.WARNING):
        rows = source.load()
    assert source.report() == {"rows": 1992, "skipped": 8}
    assert caplog.messages[0].splitlines()[1:] == [
        f"    {path}:87: the last answer of 'chosen' is empty",
        f"    {path}:517: the last answer of 'chosen' is empty",
        f"    {path}:926: the last answer of 'chosen' is empty",
        "    and 5 more",
    ]
    for row in rows:
        assert text_of(row["chosen"]).strip() != text_of(row["rejected"]).strip()
        last = row["prompt"][-1]["role"] if form == "hh_messages" else row["prompt"].rpartition("\n\n")[2]
        assert last == ("user" if form == "hh_messages" else "Assistant:")
