from __future__ import annotations

import logging

import numpy as np
import pytest
from rl_algo_dpo.records import RecordFile

A, B, C = (bytes([i]) * 16 for i in (0, 1, 255))


@pytest.fixture
def file(tmp_path):
    return RecordFile(tmp_path / "folder" / "values.bin")


def test_values_come_back_bit_by_bit(file):
    numbers = np.array([-123.456, 1e-30, -3e5], np.float32)
    file.append(dict(zip((A, B, C), numbers.tolist(), strict=True)))
    assert np.array(list(RecordFile(file.path).load().values()), np.float32).tobytes() == numbers.tobytes()
    assert list(file.load()) == [A, B, C]


def test_appended_values_join_the_earlier_ones_and_win_over_them(file):
    file.append({A: 1.0, B: 2.0})
    file.append({B: 3.0, C: 4.0})
    assert file.load() == {A: 1.0, B: 3.0, C: 4.0}


def test_no_file_is_an_empty_one_and_is_not_made(file):
    assert file.load() == {}
    assert not file.path.parent.exists()


def test_a_cleared_file_is_gone(file):
    file.append({A: 1.0})
    file.clear()
    file.clear()
    assert file.load() == {}


def test_wherever_a_block_is_torn_the_ones_before_it_stay(file):
    file.append({A: 1.0})
    kept = file.path.stat().st_size
    file.append({B: 2.0, C: 3.0})
    whole = file.path.read_bytes()
    for size in range(kept, len(whole)):
        file.path.write_bytes(whole[:size])
        assert file.load() == {A: 1.0}
        assert file.path.stat().st_size == kept


def test_an_altered_byte_ends_the_file_there(file):
    file.append({A: 1.0})
    kept = file.path.stat().st_size
    file.append({B: 2.0})
    whole = file.path.read_bytes()
    for index in range(kept, len(whole)):
        file.path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        assert file.load() == {A: 1.0}


def test_writing_goes_on_after_a_torn_block(file, caplog):
    file.append({A: 1.0})
    with file.path.open("ab") as stream:
        stream.write(b"torn")
    with caplog.at_level(logging.WARNING, "rl_algo_dpo"):
        assert file.load() == {A: 1.0}
    assert caplog.messages == [f"{file.path}: 4 bytes of an unfinished record are dropped"]
    file.append({B: 2.0})
    assert file.load() == {A: 1.0, B: 2.0}
