import math

import pytest
from rl_core.training.retention import Best, Retention


def measured(*values):
    return {step: {} if value is None else {"m": value} for step, value in enumerate(values, start=1)}


def test_only_the_newest_stay_by_default():
    assert Retention().kept(measured(*[None] * 5)) == {4, 5}


def test_multiples_stay_for_good():
    assert Retention(last=1, every=3).kept(measured(*[None] * 8)) == {3, 6, 8}


@pytest.mark.parametrize(
    ("mode", "count", "expected"), [("max", 1, [2]), ("min", 1, [4]), ("max", 2, [2, 5]), ("max", 9, [2, 5, 1, 4])]
)
def test_the_best_are_ranked_and_the_earlier_of_equal_ones_wins(mode, count, expected):
    values = measured(0.5, 0.9, None, 0.1, 0.9, math.nan)
    assert Best("m", mode, count).steps(values) == expected


def test_a_metric_that_no_step_has_keeps_nothing_extra():
    assert Retention(last=1, best=Best("other")).kept(measured(1.0, 2.0)) == {2}
