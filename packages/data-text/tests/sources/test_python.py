"""Rows from a function in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rl_core.errors import DataError
from rl_data_text.config import PythonConfig
from rl_data_text.sources.python import PythonSource

FILE = """
def rows(count=2, start=0):
    for i in range(start, start + count):
        yield {"prompt": f"{i}+{i}=", "answer": 2 * i}

def one():
    return {"prompt": "a"}

def odd():
    yield {"prompt": "a", "huge": 10**5000, 1: {2: "b"}}

def broken():
    raise KeyError("question")
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own_rows.py"
    path.write_text(FILE)
    return str(path)


def source(function: str, **fields: Any) -> PythonSource:
    return PythonSource(PythonConfig.model_validate({"name": "python", "function": function, **fields}))


def test_a_generator_gives_rows_and_takes_arguments(file: str) -> None:
    rows = source(f"{file}:rows", arguments={"count": 3, "start": 5}).load()
    assert [(row["prompt"], row["answer"]) for row in rows] == [("5+5=", 10), ("6+6=", 12), ("7+7=", 14)]
    assert rows[2]["__where__"] == f"{file}:rows:row 3"


def test_the_fingerprint_is_that_of_the_rows_however_they_were_asked_for(file: str) -> None:
    default = source(f"{file}:rows").fingerprint()
    assert default == source(f"{file}:rows", arguments={"count": 2}).fingerprint()
    assert default != source(f"{file}:rows", arguments={"count": 3}).fingerprint()


def test_a_single_dict_is_refused(file: str) -> None:
    with pytest.raises(DataError) as caught:
        source(f"{file}:one").load()
    assert str(caught.value) == f"{file}:one returned an object, not an iterable of dicts"


def test_an_exception_in_the_function_names_it(file: str) -> None:
    with pytest.raises(DataError) as caught:
        source(f"{file}:broken").load()
    assert str(caught.value) == f"{file}:broken raised KeyError: 'question'"


def test_rows_that_json_does_not_know_have_a_fingerprint_too(file: str) -> None:
    assert source(f"{file}:odd").fingerprint() == source(f"{file}:odd").fingerprint()
