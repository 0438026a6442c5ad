from __future__ import annotations

import pytest
from rl_algo_ppo.kl_controller import KlController


def test_a_kl_above_its_target_raises_the_coefficient():
    controller = KlController(0.1, target=6.0, horizon=10_000)
    # error 6.6 / 6 - 1 = 0.1; 0.1 · (1 + 0.1 · 256 / 10000) = 0.100256
    controller.update(6.6, sequences=256)
    assert controller.coefficient == pytest.approx(0.100256)


def test_a_kl_below_its_target_lowers_the_coefficient_step_by_step():
    controller = KlController(0.2, target=4.0, horizon=100)
    # error 3.6 / 4 - 1 = -0.1; 0.2 · (1 - 0.1 · 50 / 100) = 0.19, then · 0.95 again
    controller.update(3.6, sequences=50)
    controller.update(3.6, sequences=50)
    assert controller.coefficient == pytest.approx(0.1805)


@pytest.mark.parametrize(("kl", "expected"), [(1000.0, 0.12), (-1000.0, 0.08), (0.0, 0.08)])
def test_large_errors_count_as_a_fifth(kl, expected):
    controller = KlController(0.1, target=1.0, horizon=64)
    controller.update(kl, sequences=64)
    assert controller.coefficient == pytest.approx(expected)


def test_without_a_target_the_coefficient_stays():
    controller = KlController(0.1)
    controller.update(50.0, sequences=64)
    assert controller.coefficient == 0.1
