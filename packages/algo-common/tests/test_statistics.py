from __future__ import annotations

import math

import numpy as np
import pytest
from rl_algo_common.statistics import whiten


def test_whitening_worked_out_by_hand():
    # mean 2, deviations -1, 0, 1, variance 2/3
    expected = np.array([-1, 0, 1]) / math.sqrt(2 / 3)
    whitened = whiten(np.array([1.0, 2.0, 3.0]))
    assert whitened == pytest.approx(expected, rel=1e-5)
    assert whitened.dtype == np.float32


def test_values_outside_the_mask_do_not_count_and_become_zero():
    values = np.array([1.0, np.nan, 2.0, 1e9, 3.0])
    whitened = whiten(values, np.array([1, 0, 1, 0, 1], np.float32))
    assert whitened[[1, 3]].tolist() == [0.0, 0.0]
    assert whitened[[0, 2, 4]] == pytest.approx(whiten(np.array([1.0, 2.0, 3.0])))


def test_whitened_values_have_mean_zero_and_deviation_one():
    values = np.random.default_rng(0).normal(3.0, 5.0, 1000).astype(np.float32)
    whitened = whiten(values).astype(np.float64)
    assert whitened.mean() == pytest.approx(0.0, abs=1e-6)
    assert whitened.std() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("values", [np.full(8, 0.1, np.float32), 0.1 + np.array([1e-12, -1e-12]), np.zeros(0)])
def test_equal_values_become_exactly_zero(values):
    assert whiten(values).shape == values.shape
    assert not whiten(values).any()


def test_nothing_inside_the_mask_gives_zeros():
    assert whiten(np.array([1.0, 2.0]), np.zeros(2)).tolist() == [0.0, 0.0]


def test_whitening_leaves_its_argument_alone():
    values = np.array([1.0, 2.0])
    values.setflags(write=False)
    whiten(values, np.ones(2))
    assert values.tolist() == [1.0, 2.0]
