"""Philox 4x32-10 on whole numpy arrays: uniforms that are a function of (seed, stream, position).

A sample's randomness must not depend on what else is in the batch. Creating a
``numpy.random.Philox`` per sample costs more than a decoding step of a small model, so the same
cipher is evaluated for all samples at once.
"""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10

Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def philox4x32(counter: Words, key: tuple[np.ndarray, np.ndarray]) -> Words:
    """Encrypt counters (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        counter: four 32-bit words, as uint64 arrays that broadcast with each other and with ``key``.
        key: two 32-bit words, as uint64 arrays.

    Returns:
        Four 32-bit words, as uint64 arrays.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(_ROUNDS):
        if step:
            k0 = (k0 + np.uint64(_WEYL[0])) & _LOW
            k1 = (k1 + np.uint64(_WEYL[1])) & _LOW
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _HALF) ^ c1 ^ k0, right & _LOW, (left >> _HALF) ^ c3 ^ k1, left & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: np.ndarray, streams: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` numbers in [0, 1) of each stream; a longer ``count`` only appends.

    Args:
        seeds: int64 or uint64 [R]: the key.
        streams: non-negative int [R]: independent sequences under one seed.

    Returns:
        float64 [R, count], with 53 random bits each.
    """
    key = np.ascontiguousarray(seeds).view(np.uint64)[:, None]
    stream = np.asarray(streams).astype(np.uint64)[:, None]
    block = np.arange((count + 1) // 2, dtype=np.uint64)[None, :]
    zero = np.zeros((1, 1), np.uint64)
    a, b, c, d = philox4x32((block, zero, stream, zero), (key & _LOW, key >> _HALF))
    pairs = np.stack([_to_unit(a, b), _to_unit(c, d)], axis=-1)
    return pairs.reshape(len(key), -1)[:, :count]


def _to_unit(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53
