"""Rows are encoded once, before they are drawn where there is time, and a bad one is reported where it is drawn."""

from __future__ import annotations

import threading
import time

import pytest
from rl_core.batch import SequenceBatch
from rl_core.data import encodings
from rl_core.data.cursor import DataCursor
from rl_core.data.encodings import Encodings
from rl_core.errors import DataError


class Lengths:
    """An algorithm that makes a sequence of as many tokens as a row says, and remembers who asked."""

    def __init__(self):
        self.asked = []

    def encode(self, rows, tokenizer):
        (row,) = rows
        self.asked.append((row["length"], threading.current_thread().name))
        if row["length"] == 13:
            raise DataError(f"{row['__where__']}: unlucky")
        return SequenceBatch.from_lists([[1] * row["length"]])


def built(lengths, max_length=50):
    rows = [{"length": n, "__where__": f"data:{i + 1}"} for i, n in enumerate(lengths)]
    algorithm = Lengths()
    return Encodings(rows, algorithm=algorithm, tokenizer=None, max_length=max_length), algorithm


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_row_is_encoded_once():
    rows, algorithm = built([3, 4])
    assert [len(rows[i].tokens) for i in (0, 1, 0, 1)] == [3, 4, 3, 4]
    assert [n for n, _ in algorithm.asked] == [3, 4]


def test_the_rows_of_coming_steps_are_encoded_in_a_thread_in_the_order_of_the_draws():
    rows, algorithm = built(range(1, 9))
    cursor = DataCursor(size=8, seed=3, position=4)
    expected = DataCursor(size=8, seed=3, position=4).draw(3) + 1
    with rows.prefetching(cursor, 3):
        wait_for(lambda: len(rows) == 3)
    assert [n for n, _ in algorithm.asked] == expected.tolist()
    assert {name for _, name in algorithm.asked} == {"encode rows"}
    assert len(rows[int(expected[0]) - 1].tokens) == expected[0]
    assert len(algorithm.asked) == 3


def test_the_thread_ends_with_the_block_and_when_all_rows_are_encoded():
    rows, algorithm = built([1, 2, 3])
    with rows.prefetching(DataCursor(size=3, seed=0), 10**9):
        wait_for(lambda: "encode rows" not in {t.name for t in threading.enumerate()})
    assert sorted(n for n, _ in algorithm.asked) == [1, 2, 3]

    more, _ = built([1] * 100_000)
    with more.prefetching(DataCursor(size=100_000, seed=0), 100_000):
        wait_for(lambda: len(more))
    assert "encode rows" not in {t.name for t in threading.enumerate()}
    assert len(more) < 100_000


def test_a_row_that_cannot_be_encoded_says_so_where_it_is_drawn():
    rows, algorithm = built([5, 13, 60])
    with rows.prefetching(DataCursor(size=3, seed=0), 3):
        wait_for(lambda: len(algorithm.asked) == 3)
    assert len(rows[0].tokens) == 5
    with pytest.raises(DataError) as raised:
        rows[1]
    assert str(raised.value) == "data:2: unlucky"
    with pytest.raises(DataError) as raised:
        rows[2]
    assert str(raised.value) == (
        "data:3: the example has 60 tokens, more than model.max_length 50\n"
        "    raise model.max_length, or shorten or drop the row"
    )


def test_beyond_a_number_of_tokens_rows_are_encoded_anew(monkeypatch):
    monkeypatch.setattr(encodings, "_CACHED_TOKENS", 5)
    rows, algorithm = built([3, 4, 2])
    assert [len(rows[i].tokens) for i in (0, 1, 2, 2)] == [3, 4, 2, 2]
    assert [n for n, _ in algorithm.asked] == [3, 4, 2, 2]
    before = len(algorithm.asked)
    with rows.prefetching(DataCursor(size=3, seed=0), 3):
        pass
    assert len(algorithm.asked) == before
