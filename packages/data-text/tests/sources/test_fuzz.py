"""Whatever stands in a file, it loads, or a DataError names the file with its line or row; nothing else is raised."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rl_core.errors import DataError
from rl_data_text.config import JsonlConfig, ParquetConfig
from rl_data_text.sources.base import TextSource
from rl_data_text.sources.jsonl import JsonlSource
from rl_data_text.sources.parquet import ParquetSource

SETTINGS = settings(
    max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"prompt": "prompt.0.content", "completion": "{answer}!"},
    {"prompt": "Q: {question}", "answer_pattern": "#### (.+)"},
    {"format": "hh"},
    {"format": "hh_messages", "system": "Be brief."},
    {"messages": "chat", "system": "Be brief.", "limit": 2},
    {"label": "label", "holdout": 1},
]
COLUMN_NAMES = "prompt completion answer messages chosen rejected label question chat role content tool_calls x.0"
NAMES = st.sampled_from([*COLUMN_NAMES.split(), "\ud800"])
PIECES = [b"{", b"\n", b'{"prompt": "', b'"}', b"[["]
TRANSCRIPTS = st.lists(
    st.sampled_from(["\n\nHuman:", "\n\nAssistant:", " yes", " no", "#### 7"]), min_size=3, max_size=6
)
TEXTS = st.one_of(st.text(max_size=4), TRANSCRIPTS.map("".join), st.sampled_from(["\ud83d", "\x00", "", "user"]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.one_of(st.sampled_from(["user", "assistant"]), SCALARS), "content": TEXTS}),
    max_size=3,
)
VALUES = st.recursive(
    st.one_of(SCALARS, MESSAGES),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
TALK = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
GOOD = {"prompt": "1+1=", "question": "1+1=", "answer": "#### 2", "completion": "2", "messages": TALK, "chat": TALK}
GOOD |= {"chosen": "\n\nHuman: 1+1\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1\n\nAssistant: 3", "label": True}
# Of arbitrary rows alone hardly any would load.
ROWS = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.dictionaries(NAMES, VALUES, max_size=1).map(lambda changed: GOOD | changed),
)
ROW_ERROR = re.compile(r"^(?P<path>.*):(row )?(?P<number>\d+): (?P<reason>.+)")


def outcome(source: TextSource, path: Path) -> str:
    """Load, and look at the rows or at the error: ``loads`` or ``named``."""
    try:
        rows = source.load()
    except DataError as error:
        first = str(error).split("\n")[0]
        assert str(path) in first
        if source.config.on_bad_row == "error" and "\n    fix the row" in str(error):
            found = ROW_ERROR.match(first)
            assert found is not None
            assert found["path"] == str(path)
        answer = "named"
    else:
        answer = "loads"
        assert rows
        for row in rows:
            assert row["__where__"].startswith(f"{path}:")
            for key in ("prompt", "completion", "chosen", "rejected"):
                if isinstance(row.get(key), str):
                    row[key].encode("utf-8")
    assert len(source.fingerprint()) == 64
    return answer


@pytest.fixture
def jsonl_answer(tmp_path: Path) -> Iterator[Callable[..., set[str]]]:
    """What happens to a file's content, bad rows being errors and being skipped."""
    logging.getLogger("rl_data_text").setLevel(logging.ERROR)

    def answer(content: bytes, options: dict[str, Any], name: str = "a.jsonl") -> set[str]:
        path = tmp_path / name
        path.write_bytes(content)
        fields = {"name": "jsonl", "path": str(path), **options}
        configs = [JsonlConfig.model_validate(fields | {"on_bad_row": way}) for way in ("error", "skip")]
        return {outcome(JsonlSource(config), path) for config in configs}

    yield answer
    logging.getLogger("rl_data_text").setLevel(logging.NOTSET)


@pytest.fixture
def parquet_answer(tmp_path: Path) -> Iterator[Callable[..., set[str]]]:
    """The same of a table, after harm to its file."""
    logging.getLogger("rl_data_text").setLevel(logging.ERROR)
    path = tmp_path / "a.parquet"

    def answer(table: pyarrow.Table, options: dict[str, Any], harm: Callable[[bytes], bytes] = bytes) -> set[str]:
        pyarrow.parquet.write_table(table, path)
        path.write_bytes(harm(path.read_bytes()))
        fields = {"name": "parquet", "path": str(path), **options}
        configs = [ParquetConfig.model_validate(fields | {"on_bad_row": way}) for way in ("error", "skip")]
        return {outcome(ParquetSource(config), path) for config in configs}

    yield answer
    logging.getLogger("rl_data_text").setLevel(logging.NOTSET)


def harmed(place: float, bit: int, cut: bool) -> Callable[[bytes], bytes]:
    """Cuts bytes off from a relative ``place`` on, or flips a bit there."""

    def harm(content: bytes) -> bytes:
        at = min(int(place * len(content)), len(content) - 1)
        if cut:
            return content[:at]
        return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

    return harm


HARM = st.builds(harmed, st.floats(0, 1), st.integers(0, 7), st.booleans())


def test_arbitrary_rows_load_or_are_named_with_their_line(jsonl_answer):
    met = set()

    @SETTINGS
    @given(rows=st.lists(ROWS, max_size=4), options=st.sampled_from(OPTIONS))
    def try_one(rows, options):
        met.update(jsonl_answer("\n".join(map(json.dumps, rows)).encode(), options))

    try_one()
    assert met == {"loads", "named"}


def test_arbitrary_bytes_load_or_are_named_with_their_line(jsonl_answer):
    met = set()

    @SETTINGS
    @given(content=st.lists(st.one_of(st.binary(max_size=8), st.sampled_from(PIECES))))
    def try_one(content):
        met.update(jsonl_answer(b"".join(content), {}))

    try_one()
    assert "named" in met


def test_a_damaged_gzip_file_loads_or_is_named(jsonl_answer):
    met = set()
    packed = gzip.compress(b'{"prompt": "1+1=", "answer": "2"}\n' * 3, mtime=0)

    @SETTINGS
    @given(harm=HARM)
    def try_one(harm):
        met.update(jsonl_answer(harm(packed), {}, "a.jsonl.gz"))

    try_one()
    assert met == {"loads", "named"}  # some bits of the header mean nothing


MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "?"]), "content": st.text(max_size=3)})
CHAT = pyarrow.list_(pyarrow.struct([("role", "string"), ("content", "string")]))


def three(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(values, min_size=3, max_size=3)


def unchecked_text(values: list[bytes]) -> pyarrow.Array:
    """Text as another program may have written it: not necessarily UTF-8."""
    return pyarrow.StringArray.from_buffers(len(values), *pyarrow.array(values, pyarrow.binary()).buffers()[1:])


def typed(values: st.SearchStrategy, type: pyarrow.DataType | None = None) -> st.SearchStrategy:
    return three(values).map(lambda values: pyarrow.array(values, type))


COLUMNS = st.one_of(
    typed(st.one_of(st.none(), st.text(max_size=4)), pyarrow.string()),
    typed(st.one_of(st.none(), st.binary(max_size=4)), pyarrow.binary()),
    typed(st.integers(-(2**62), 2**62), pyarrow.timestamp("us")),
    typed(st.floats()),
    typed(st.lists(st.none(), max_size=2)),
    typed(st.lists(MESSAGE), CHAT),
    three(st.binary(min_size=1, max_size=4)).map(unchecked_text),
)
TABLES = st.one_of(
    st.lists(st.tuples(NAMES.filter(str.isascii), COLUMNS), max_size=4),
    # Of arbitrary columns alone hardly any table would load.
    st.dictionaries(NAMES.filter(str.isascii), COLUMNS, max_size=1).map(
        lambda changed: list(({name: pyarrow.array([value] * 3) for name, value in GOOD.items()} | changed).items())
    ),
).map(lambda columns: pyarrow.table([column for _, column in columns], names=[name for name, _ in columns]))


def test_arbitrary_columns_load_or_are_named_with_their_row(parquet_answer):
    met = set()

    @SETTINGS
    @given(table=TABLES, options=st.sampled_from(OPTIONS))
    def try_one(table, options):
        met.update(parquet_answer(table, options))

    try_one()
    assert met == {"loads", "named"}


def test_a_damaged_parquet_file_loads_or_is_named(parquet_answer):
    met, table = set(), pyarrow.table({"prompt": ["a", "b", "c"], "answer": [1, 2, 3]})

    @SETTINGS
    @given(harm=HARM)
    def try_one(harm):
        met.update(parquet_answer(table, {}, harm))

    try_one()
    assert met == {"loads", "named"}  # not every byte is looked at


def test_a_value_that_python_cannot_hold_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    times = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "time": times}), path)
    with pytest.raises(DataError) as caught:
        ParquetSource(ParquetConfig(name="parquet", path=str(path))).load()
    first = str(caught.value).split("\n")[0]
    assert first.startswith(f"{path}:row 2: cannot be read: ")
