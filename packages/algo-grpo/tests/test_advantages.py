from __future__ import annotations

import numpy as np
import pytest
from rl_algo_grpo.advantages import flat_group_fraction, group_advantages

ONE_GROUP = np.zeros(4, np.int64)
REWARDS = np.array([1, 0, 0, 0], np.float32)


def test_one_success_in_four_with_the_sample_deviation():
    # mean 1/4, std with ddof 1 = 1/2: (3/4) / (1/2) and (-1/4) / (1/2)
    advantages = group_advantages(REWARDS, ONE_GROUP, ddof=1)
    assert advantages == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)
    assert advantages.dtype == np.float32


def test_one_success_in_four_with_the_population_deviation():
    advantages = group_advantages(REWARDS, ONE_GROUP, ddof=0)
    assert advantages == pytest.approx([1.7320508, -0.5773503, -0.5773503, -0.5773503], rel=1e-5)


def test_without_scaling_only_the_mean_is_subtracted():
    assert group_advantages(REWARDS, ONE_GROUP, scale="none").tolist() == [0.75, -0.25, -0.25, -0.25]


def test_equal_rewards_give_exactly_zero_whatever_the_scale():
    rewards = np.full(8, 0.1, np.float32)
    for scale in ("std", "none", "batch"):
        assert not group_advantages(rewards, np.zeros(8, np.int64), scale=scale).any()


def test_rounding_residue_in_a_group_does_not_become_an_advantage():
    rewards = np.array([0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.1, 1.0, 0.0, 0.0, 1.0])
    groups = np.repeat([0, 1], 4)
    for scale in ("std", "none", "batch"):
        advantages = group_advantages(rewards, groups, scale=scale)
        assert not advantages[:4].any()
        assert advantages[4:].all()


def test_batch_scale_divides_by_the_deviation_of_all_rewards():
    rewards = np.array([1, 0, 3, 1], np.float32)
    groups = np.array([0, 0, 1, 1])
    # deviations ±1/2 and ±1; all rewards: mean 5/4, squares 1/16 + 25/16 + 49/16 + 1/16 = 76/16, /3, root = 1.2583057
    expected = np.array([0.5, -0.5, 1.0, -1.0]) / 1.2583057
    assert group_advantages(rewards, groups, scale="batch") == pytest.approx(expected, rel=1e-5)


def test_groups_may_be_interleaved_and_named_by_any_number():
    rewards = np.array([1, 5, 0, 5, 0, 5, 0, 6], np.float32)
    groups = np.array([7, -2, 7, -2, 7, -2, 7, -2])
    expected = [1.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 1.5]
    assert group_advantages(rewards, groups) == pytest.approx(expected, rel=1e-5)


def test_a_group_of_one_teaches_nothing():
    assert group_advantages(np.array([3.0]), np.array([0])).tolist() == [0.0]


def test_no_sequences_give_no_advantages():
    assert group_advantages(np.zeros(0, np.float32), np.zeros(0, np.int64)).shape == (0,)


def test_the_share_of_flat_groups_counts_groups_not_sequences():
    rewards = np.array([1, 1, 0, 1, 0, 0, 0, 0], np.float32)
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    assert flat_group_fraction(rewards, groups) == pytest.approx(2 / 3)
