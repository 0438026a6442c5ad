"""Parquet files."""

from __future__ import annotations

import datetime
import decimal
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rl_core.errors import DataError
from rl_data_text.config import ParquetConfig
from rl_data_text.sources.parquet import ParquetSource


def source(path: Path, **fields: Any) -> ParquetSource:
    return ParquetSource(ParquetConfig.model_validate({"name": "parquet", "path": str(path), **fields}))


def test_rows_come_with_their_number_and_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"q": f"q{i}", "chat": [{"role": "user", "content": "hi"}]} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    loaded = source(path, prompt="q", messages="chat").load()
    assert [row["prompt"] for row in loaded] == ["q0", "q1", "q2"]
    assert loaded[2]["messages"] == [{"role": "user", "content": "hi"}]
    assert loaded[2]["__where__"] == f"{path}:row 3"


def test_a_null_prompt_is_reported_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", None]}), path)
    with pytest.raises(DataError) as caught:
        source(path).load()
    assert str(caught.value).splitlines()[0] == f"{path}:row 2: no 'prompt' and no 'messages' (columns: prompt)"


def test_columns_keep_the_values_of_pythons_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "price": pyarrow.array([decimal.Decimal("5.00")]),
        "day": pyarrow.array([datetime.date(2024, 1, 5)]),
        "at": pyarrow.array([datetime.datetime(2024, 1, 5, 12, 30)], pyarrow.timestamp("us")),
        "raw": pyarrow.array([b"ab"]),
        "large": pyarrow.array([2**63], pyarrow.uint64()),
        "odd": pyarrow.array([math.inf]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    row = dict(source(path, prompt="{price} on {day}, {large}").load()[0])
    assert row.pop("prompt") == "5.00 on 2024-01-05, 9223372036854775808"
    del row["__where__"]
    assert row == {
        "price": decimal.Decimal("5.00"),
        "day": datetime.date(2024, 1, 5),
        "at": datetime.datetime(2024, 1, 5, 12, 30),
        "raw": b"ab",
        "large": 2**63,
        "odd": math.inf,
    }


def test_a_template_refuses_what_has_no_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [math.nan], "raw": [b"ab"]}), path)
    for column, found in (("n", "a number that is not finite"), ("raw", "a bytes")):
        with pytest.raises(
            DataError, match=f"row 1: column '{column}' in the template of 'prompt' is {found}, not text"
        ):
            source(path, prompt=f"{{{column}}}!").load()


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), path)
    with pytest.raises(DataError, match="two columns have the name 'prompt'"):
        source(path).load()


def test_a_null_completion_beside_prompts_is_no_completion(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": ["2+3"], "completion": pyarrow.array([None], pyarrow.string()), "answer": ["5"]})
    pyarrow.parquet.write_table(table, path)
    row = source(path).load()[0]
    assert (row["prompt"], row["answer"], "completion" in row) == ("2+3", "5", False)


def test_a_file_that_is_not_parquet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("question,answer\n")
    with pytest.raises(DataError, match=f"{path}: cannot be read as Parquet: "):
        source(path).load()


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    digests = []
    for text in ("a", "b"):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": [text]}), tmp_path / "a.parquet")
        digests.append(source(tmp_path / "a.parquet").fingerprint())
    assert digests[0] != digests[1]
