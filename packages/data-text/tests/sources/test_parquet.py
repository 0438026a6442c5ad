"""Parquet files."""

from __future__ import annotations

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
