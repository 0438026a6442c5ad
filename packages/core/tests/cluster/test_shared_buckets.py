"""Weights in memory that processes share."""

import gc
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from rl_core.cluster import shared_buckets as module
from rl_core.cluster.shared_buckets import SharedBuckets
from rl_core.contracts.backend import WeightBucket

pytestmark = pytest.mark.skipif(not SharedBuckets.possible(), reason="only Linux has memory without a name")


def bucket(name, data):
    return WeightBucket(names=(name,), shapes=((len(data),),), dtypes=("uint8",), data=np.array(data, np.uint8))


def shared(*buckets):
    found = SharedBuckets()
    found.fill(buckets)
    return found


def test_buckets_are_read_as_they_were_and_cannot_be_written_to():
    written = [bucket("a", [1, 2, 3]), bucket("b", []), bucket("c", range(200))]
    kept = shared(*written)
    found = kept.described.read()
    for one, other in zip(found, written, strict=True):
        assert (one.names, one.shapes, one.dtypes) == (other.names, other.shapes, other.dtypes)
        assert one.data.tolist() == other.data.tolist()
        assert not one.data.flags.writeable


def test_there_may_be_nothing_in_them():
    assert shared().described.read() == []
    kept = shared(bucket("a", []))
    assert kept.described.read()[0].data.tolist() == []


def test_another_process_reads_them_and_what_was_read_outlives_the_writer():
    kept = shared(bucket("a", [7] * 5000))
    program = "import pickle, sys; print(sum(pickle.load(sys.stdin.buffer).read()[0].data.tolist()))"
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(kept.described), capture_output=True, check=True, timeout=60
    )
    assert done.stdout.split() == [b"35000"]
    described, found = kept.described, kept.described.read()
    del kept
    gc.collect()
    assert found[0].data.sum() == 35000
    with pytest.raises(OSError, match=r"No such file|No such device|not permitted"):
        described.read()


def test_the_memory_goes_back_with_its_last_reader():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        kept = shared(bucket("a", [1] * 5000))
        kept.described.read()
        del kept
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if "rl-weights" in line]


def test_the_same_memory_holds_one_set_of_buckets_after_the_other():
    kept = shared(bucket("a", range(200)), bucket("b", [7] * 9000))
    place = kept.described.path
    for written in ([bucket("a", [5] * 300), bucket("b", [1, 2])], [bucket("c", [9] * 20_000)], []):
        kept.fill(iter(written))
        found = kept.described.read()
        assert [(one.names, one.data.tolist()) for one in found] == [(one.names, one.data.tolist()) for one in written]
        assert kept.described.path == place
        assert os.stat(place).st_size == sum(len(one.data) for one in written)


def test_little_memory_is_kept(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 5)
    assert shared(bucket("a", [1] * 5)).worth_keeping
    assert not shared(bucket("a", [1] * 3), bucket("b", [1] * 3)).worth_keeping
