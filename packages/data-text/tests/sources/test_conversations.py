"""Conversations as files have them: Arrow's nulls, ShareGPT's names, tools and template variables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from rl_core.errors import DataError
from rl_data_text.config import HuggingFaceConfig, ParquetConfig
from rl_data_text.sources.huggingface import HuggingFaceSource
from rl_data_text.sources.parquet import ParquetSource


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


USER = {"role": "user", "content": "warm?"}
ROWS = [
    {
        "messages": [USER, call("weather", city={"name": "Paris"}), {"role": "assistant", "content": "yes"}],
        "tools": [tool("weather", city={"type": "string", "enum": ["Paris", None]})],
        "chat_template_kwargs": {"date": "today"},
    },
    {
        "messages": [USER, call("time", zone="CET"), {"role": "assistant", "content": "no", "train": False}],
        "tools": [tool("time", zone={"type": "string"})],
        "chat_template_kwargs": {"enable_thinking": False},
    },
]


def parquet(folder: Path, rows: list[dict[str, Any]]) -> ParquetSource:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return ParquetSource(ParquetConfig(name="parquet", path=str(folder / "rows.parquet")))


def saved(folder: Path, rows: list[dict[str, Any]]) -> HuggingFaceSource:
    import datasets

    datasets.Dataset(pa.Table.from_pylist(rows)).save_to_disk(str(folder / "saved"))
    return HuggingFaceSource(HuggingFaceConfig(name="huggingface", path=str(folder / "saved")))


@pytest.mark.parametrize("source", [parquet, saved])
def test_rows_of_one_arrow_schema_are_what_they_were_before(source: Callable, tmp_path: Path) -> None:
    loaded = source(tmp_path, ROWS).load()
    assert [{key: row[key] for key in ROWS[0]} for row in loaded] == ROWS


def test_nulls_in_other_columns_of_arrow_stay(tmp_path: Path) -> None:
    (first, _) = parquet(tmp_path, [{**row, "about": {"a": None, "b": i}} for i, row in enumerate(ROWS)]).load()
    assert first["about"] == {"a": None, "b": 0}


def test_nulls_of_json_lines_are_the_rows_own(write_lines: Callable, jsonl: Callable) -> None:
    row = {"messages": [USER, call("weather", unit=None)]}
    assert jsonl(write_lines([row])).load()[0]["messages"] == row["messages"]


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_template_variables_may_be_json_text(as_text: bool, write_lines: Callable, jsonl: Callable) -> None:
    written = {key: json.dumps(value) if as_text and key != "messages" else value for key, value in ROWS[1].items()}
    (row,) = jsonl(write_lines([written])).load()
    assert {key: row[key] for key in written} == ROWS[1]


def test_tools_may_be_a_list_of_json_texts_and_have_another_name(write_lines: Callable, jsonl: Callable) -> None:
    functions = [json.dumps(one) for one in ROWS[0]["tools"]]
    path = write_lines([{"messages": [USER, {"role": "assistant", "content": "a"}], "functions": functions}])
    assert jsonl(path, tools="functions").load()[0]["tools"] == ROWS[0]["tools"]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"tools": "hammer"}, "'tools' is text that is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ({"tools": {"a": 1}}, "'tools' must be a list of JSON schemas (objects), or the JSON text of one"),
        ({"tools": [3]}, "'tools' must be a list of JSON schemas (objects), or the JSON text of one"),
        (
            {"chat_template_kwargs": "[]"},
            "'chat_template_kwargs' must be an object with the template's variables, or its JSON text",
        ),
    ],
)
def test_columns_of_another_form_are_bad_rows(
    extra: dict[str, Any], expected: str, write_lines: Callable, jsonl: Callable
) -> None:
    with pytest.raises(DataError) as caught:
        jsonl(write_lines([{"messages": [USER, {"role": "assistant", "content": "a"}], **extra}])).load()
    assert str(caught.value).split("\n")[0].partition(":1: ")[2] == expected


def test_a_column_of_tools_beside_text_is_left_alone(write_lines: Callable, jsonl: Callable) -> None:
    row = {"prompt": "a", "completion": "b", "tools": "hammer"}
    assert jsonl(write_lines([row])).load()[0]["tools"] == "hammer"


def test_messages_of_share_gpt_get_roles_and_keep_their_other_keys(write_lines: Callable, jsonl: Callable) -> None:
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "hi", "weight": None},
        {"from": "gpt", "value": "hello", "train": False, "mood": "good"},
    ]
    (row,) = jsonl(write_lines([{"conversations": said}]), messages="conversations").load()
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi", "weight": None},
        {"role": "assistant", "content": "hello", "train": False, "mood": "good"},
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"weight": 0.5}, "messages[1]: a message has weight 0.5; it is trained on or not: true, false, 1 or 0"),
        ({"train": "no"}, "messages[1]: a message has train 'no'; it is trained on or not: true, false, 1 or 0"),
        ({"train": True, "masked": True}, "messages[1]: a message's train and masked contradict each other"),
    ],
)
def test_what_does_not_say_clearly_whether_to_train_is_a_bad_row(
    keys: dict[str, Any], expected: str, write_lines: Callable, jsonl: Callable
) -> None:
    with pytest.raises(DataError) as caught:
        jsonl(write_lines([{"messages": [USER, {"role": "assistant", "content": "a", **keys}]}])).load()
    assert str(caught.value).split("\n")[0].partition(":1: ")[2] == expected


def test_an_answer_of_a_pair_keeps_its_tool_calls(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": [USER], "chosen": [call("weather")], "rejected": [call("time")]}])
    (row,) = jsonl(path).load()
    assert (row["chosen"], row["rejected"]) == ([call("weather")], [call("time")])


PARTS = [{"type": "text", "text": "What is 6"}, {"type": "text", "text": " x 7?"}]


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_a_content_of_text_parts_is_one_text(
    source: str, write_lines: Callable, jsonl: Callable, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS[:1]}]
    rows = [{"messages": messages, "prompt": messages[:1], "chosen": messages[1:]}]
    if source == "jsonl":
        (row,) = jsonl(write_lines(rows)).load()
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        (row,) = ParquetSource(ParquetConfig(name="parquet", path=str(tmp_path / "rows.parquet"))).load()
    plain = [{"role": "user", "content": "What is 6 x 7?"}, {"role": "assistant", "content": "What is 6"}]
    assert row["messages"] == plain
    assert row["prompt"] == plain[:1]
    assert row["chosen"] == plain[1:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([*PARTS, {"type": "image_url", "image_url": {"url": "a.png"}}], "has parts other than text: image_url;"),
        ([{"type": "text", "text": 7}], "has parts other than text: a text that is no string;"),
        (["What?"], "has parts other than text: a string;"),
        ([], "content is a list, not a string"),
        (None, "content is null, not a string"),
    ],
)
def test_a_content_that_is_no_text_is_a_bad_row(
    content: Any, said: str, write_lines: Callable, jsonl: Callable
) -> None:
    path = write_lines([{"prompt": [{"role": "user", "content": content}]}])
    with pytest.raises(DataError) as caught:
        jsonl(path).load()
    assert said in str(caught.value)
    assert f"{path}:1" in str(caught.value)
