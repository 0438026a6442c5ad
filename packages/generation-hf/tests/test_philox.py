"""The counter-based generator against its published vectors, and its streams."""

from __future__ import annotations

import numpy as np
import pytest
from rl_generation_hf.philox import philox4x32, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_cipher_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox4x32(tuple(np.array([w], np.uint64) for w in counter), tuple(np.array([w], np.uint64) for w in key))
    assert tuple(int(w[0]) for w in words) == expected


def test_a_longer_stream_starts_with_the_shorter_one():
    seeds, streams = np.array([3, -1], np.int64), np.array([0, 7])
    assert np.array_equal(uniforms(seeds, streams, 9)[:, :4], uniforms(seeds, streams, 4))


def test_a_stream_depends_on_its_seed_and_index_only():
    together = uniforms(np.array([3, 3, 4], np.uint64), np.array([0, 1, 0]), 6)
    assert np.array_equal(together[1], uniforms(np.array([3], np.uint64), np.array([1]), 6)[0])
    assert len(np.unique(together)) == together.size


def test_a_negative_seed_is_the_same_bits_unsigned():
    assert np.array_equal(
        uniforms(np.array([-2], np.int64), np.array([5]), 3),
        uniforms(np.array([2**64 - 2], np.uint64), np.array([5]), 3),
    )


def test_numbers_are_uniform_and_uncorrelated_between_neighbouring_streams():
    numbers = uniforms(np.zeros(200, np.int64), np.arange(200), 500)
    assert 0 <= numbers.min() < numbers.max() < 1
    counts = np.bincount((numbers.ravel() * 20).astype(int), minlength=20)
    expected = numbers.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # 0.1 % point of chi-square, 19 degrees
    assert np.abs(np.corrcoef(numbers)[np.triu_indices(200, 1)]).max() < 0.25
