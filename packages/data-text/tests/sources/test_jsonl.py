"""JSON-lines files: several, zipped, badly encoded, misspelt."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.errors import DataError

FIX = "\n    fix the row, or set on_bad_row: skip to leave such rows out"


def message_of(source) -> str:
    with pytest.raises(DataError) as caught:
        source.load()
    return str(caught.value)


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert [(row["prompt"], row["__where__"]) for row in jsonl(str(path)).load()] == [
        ("a", f"{path}:1"),
        ("b", f"{path}:4"),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str, tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl"
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
    path.write_bytes((mark + '{"prompt": "é"}\r\n{"prompt": "\u4e0a"}\n').encode(encoding))
    assert [row["prompt"] for row in jsonl(str(path)).load()] == ["é", "\u4e0a"]


def test_a_byte_order_mark_beside_a_bad_byte_costs_only_the_row_of_the_byte(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\n{"prompt": "\xff"}\n{"prompt": "three"}\n')
    source = jsonl(str(path), on_bad_row="skip")
    assert [row["prompt"] for row in source.load()] == ["one", "three"]
    assert source.report() == {"rows": 2, "skipped": 1}


def test_files_joined_with_their_byte_order_marks_lose_no_row(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}\n')
    assert [row["prompt"] for row in jsonl(str(path)).load()] == ["a", "b"]


def test_a_cut_utf16_file_and_one_without_a_mark_are_errors(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16")[:-1])
    assert message_of(jsonl(str(path))) == f"{path}: begins as UTF-16, but is not: truncated data at byte 32"
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16-le"))
    assert "UTF-16 (convert it: iconv -f UTF-16 -t UTF-8)" in message_of(jsonl(str(path)))


def test_a_key_that_is_given_twice_is_a_bad_row(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a"}, '{"prompt": "b", "meta": {"n": 1, "n": 2}}'])
    assert message_of(jsonl(path)) == f"{path}:2: invalid JSON: the key 'n' is given twice{FIX}"


def test_null_is_as_good_as_no_column(write_lines: Callable, jsonl: Callable) -> None:
    row = {"prompt": "a", "completion": None, "chosen": None, "rejected": None, "label": None, "other": None}
    loaded = jsonl(write_lines([row])).load()[0]
    assert [key for key in loaded if key != "__where__"] == ["prompt", "label", "other"]


def test_null_in_a_column_that_is_asked_for_is_a_bad_row(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a", "target": None}])
    assert message_of(jsonl(path, completion="target")).startswith(f"{path}:1: 'completion' is null, not a string")


def test_a_path_that_is_no_file_says_so(tmp_path: Path, jsonl: Callable) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "link"):
        assert message_of(jsonl(str(tmp_path / name))).endswith("(a broken link, a pipe or a device)")
    assert message_of(jsonl(str(tmp_path / ("n" * 200)))).startswith("no such file: ")


def test_several_files_and_globs_are_read_in_order(write_lines: Callable, tmp_path: Path, jsonl: Callable) -> None:
    for name in ("b-2.jsonl", "b-1.jsonl", "a.jsonl"):
        write_lines([{"prompt": name}], name)
    rows = jsonl([str(tmp_path / "b-*.jsonl"), str(tmp_path / "a.jsonl")]).load()
    assert [row["prompt"] for row in rows] == ["b-1.jsonl", "b-2.jsonl", "a.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_gzip_files_are_unzipped(name: str, tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"prompt": "zipped"}\n'))
    assert jsonl(str(path)).load()[0]["prompt"] == "zipped"


def test_a_cut_off_gzip_file_is_an_error(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "zipped"}\n' * 100)[:-20])
    assert message_of(jsonl(str(path))) == (
        f"{path}: not a complete gzip file: Compressed file ended before the end-of-stream marker was reached\n"
        f"    check it: gzip -t {path}"
    )


def test_bytes_that_are_not_utf8_are_reported_with_their_line(tmp_path: Path, jsonl: Callable) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"prompt": "é"}\n'.encode() + b'{"prompt": "caf\xe9"}\n' + b'{"prompt": "c"}\n')
    assert message_of(jsonl(str(path))) == f"{path}:2: not UTF-8: byte 0xe9 at position 16{FIX}"
    assert [row["prompt"] for row in jsonl(str(path), on_bad_row="skip").load()] == ["é", "c"]


def test_truncated_rows_are_reported_with_their_line(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines([{"prompt": "a"}, '{"prompt": "b'])
    assert message_of(jsonl(path)) == f"{path}:2: invalid JSON: Unterminated string starting at at column 12{FIX}"


def test_a_json_array_is_recognised(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines(["[", '{"prompt": "a"}', "]"])
    assert message_of(jsonl(path)) == (
        f"{path}:1: a JSON array over several lines, not JSON lines (convert it: jq -c '.[]'){FIX}"
    )


def test_a_number_of_thousands_of_digits_is_a_bad_row(write_lines: Callable, jsonl: Callable) -> None:
    path = write_lines(['{"prompt": "a", "n": ' + "9" * 5000 + "}"])
    assert message_of(jsonl(path)).startswith(f"{path}:1: invalid JSON: Exceeds the limit (4300 digits)")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("1e400", "the number 1e400 is larger than any float64"),
        ("-1" + "0" * 400 + ".5", f"the number -1{'0' * 38}… is larger than any float64"),
        ("NaN", "NaN is no JSON (write null)"),
        ("[-Infinity]", "-Infinity is no JSON (write null)"),
    ],
    ids=["1e400", "400 digits", "NaN", "-Infinity"],
)
def test_a_number_that_json_or_float64_does_not_have_is_a_bad_row(
    number: str, reason: str, write_lines: Callable, jsonl: Callable
) -> None:
    path = write_lines([{"prompt": "a", "n": 1e300}, f'{{"prompt": "b", "n": {number}}}'])
    assert message_of(jsonl(path)) == f"{path}:2: invalid JSON: {reason}{FIX}"
    assert [row["n"] for row in jsonl(path, on_bad_row="skip").load()] == [1e300]


def test_a_missing_file_suggests_its_neighbours(write_lines: Callable, tmp_path: Path, jsonl: Callable) -> None:
    write_lines([{"prompt": "a"}], "train.jsonl")
    asked = str(tmp_path / "trian.jsonl")
    assert message_of(jsonl(asked)) == f"no such file: {asked}\n    did you mean train.jsonl?"
    other = str(tmp_path / "zzz")
    assert message_of(jsonl(other)) == f"no such file: {other}\n    the folder holds train.jsonl"
    nowhere = str(tmp_path / "no" / "a.jsonl")
    assert message_of(jsonl(nowhere)) == (f"no such file: {nowhere}\n    its folder {tmp_path / 'no'} does not exist")
    glob = str(tmp_path / "*.csv")
    assert message_of(jsonl(glob)) == f"no file matches {glob}"
    assert message_of(jsonl(str(tmp_path))) == (
        f"{tmp_path} is a folder, not a file\n    name its files with a glob: {tmp_path}/*.jsonl"
    )


def test_thousands_of_rows_load_in_well_under_a_second(write_lines: Callable, jsonl: Callable) -> None:
    row = {"question": "How many clips did she sell altogether? " * 5, "answer": "She sold 72 clips.\n#### 72"}
    path = write_lines([row] * 8000)
    started = time.process_time()
    rows = jsonl(path, prompt="Q: {question}", answer_pattern="#### (.+)").load()
    assert time.process_time() - started < 1.5
    assert len(rows) == 8000


def test_the_fingerprint_sees_the_order_of_files(write_lines: Callable, jsonl: Callable) -> None:
    a, b = write_lines([{"prompt": "a"}], "a.jsonl"), write_lines([{"prompt": "b"}], "b.jsonl")
    assert jsonl([a, b]).fingerprint() != jsonl([b, a]).fingerprint()


def test_rows_are_plain_json(gsm8k: str, jsonl: Callable) -> None:
    rows = list(jsonl(gsm8k, prompt="question").load())
    assert rows
    assert json.loads(json.dumps(rows)) == rows
