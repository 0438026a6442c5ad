"""Parcels arrive as they were sent, whatever is in them."""

import os
import struct
import sys
import threading
from dataclasses import dataclass
from multiprocessing import Pipe

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.cluster import parcels
from rl_core.cluster.parcels import pack, receive, send, unpack


@pytest.fixture
def ends():
    ours, theirs = Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def through(ends, *values):
    """The values after a journey; a sender of its own, because a socket holds little."""
    ours, theirs = ends
    sender = threading.Thread(target=lambda: [send(ours, pack(value)) for value in values])
    sender.start()
    found = [unpack(receive(theirs)) for _ in values]
    sender.join()
    return found


def test_arrays_of_all_sizes_arrive_in_order(ends):
    rng = np.random.default_rng(0)
    sizes = (0, 1, 63, 64, 65, 3, 2_000_003, 0)
    arrays = [rng.integers(0, 256, n).astype(np.uint8) for n in sizes]
    shaped = rng.normal(size=(3, 4, 5)).T
    found, text, other = through(ends, {"arrays": arrays}, "text", (shaped, None, 7))
    for one, expected in zip(found["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(one, expected)
    assert text == "text"
    np.testing.assert_array_equal(other[0], shaped)
    assert other[1:] == (None, 7)


def test_what_arrives_is_aligned_and_cannot_be_written_to(ends):
    (found,) = through(ends, [np.arange(n, dtype=np.float64) for n in (1, 5, 1000)])
    for array in found:
        assert array.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_parcel_may_have_more_parts_than_a_system_call_takes(ends):
    count = 3 * parcels._MOST_PIECES
    (found,) = through(ends, [np.full(3, i) for i in range(count)])
    assert [int(array[2]) for array in found] == list(range(count))


def test_a_batch_arrives_with_its_columns(ends):
    batch = SequenceBatch.from_lists(
        [np.arange(3), np.arange(5)],
        token_columns={"loss_mask": [np.ones(3, np.float32), np.zeros(5, np.float32)]},
        sequence_columns={"reward": np.array([0.5, 1.5], np.float32)},
    )
    (found,) = through(ends, batch)
    assert found.tokens.tolist() == batch.tokens.tolist()
    assert found.token_columns["loss_mask"].tolist() == batch.token_columns["loss_mask"].tolist()
    assert found.sequence_columns["reward"].tolist() == [0.5, 1.5]


def test_functions_and_classes_of_the_main_module_go_along(ends, monkeypatch):
    twice = lambda x: 2 * x  # noqa: E731
    made = dataclass(type("Made", (), {"__annotations__": {"number": int}, "__module__": "__main__"}))
    monkeypatch.setattr(sys.modules["__main__"], "Made", made, raising=False)
    parcel = [bytes(part) for part in pack((twice, made(3), np.arange(4)))]
    monkeypatch.undo()  # as in another process
    function, instance, array = unpack(parcel)
    assert (function(4), instance.number, array.tolist()) == (8, 3, [0, 1, 2, 3])


def test_what_cannot_be_pickled_is_told(ends):
    with pytest.raises(TypeError, match="cannot pickle"):
        pack({"lock": threading.Lock(), "array": np.arange(3)})


def test_the_end_of_the_other_side_is_no_parcel(ends):
    ours, theirs = ends
    os.write(ours.fileno(), struct.pack("<2Q", 1, 100) + b"it breaks off")
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)
