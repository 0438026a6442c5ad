from __future__ import annotations

import numpy as np
import pytest
from rl_algo_grpo.advantages import group_advantages, varied_groups, whitened_advantages, zero_group_fraction
from rl_core.batch import SequenceBatch

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


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    advantages = group_advantages(REWARDS, ONE_GROUP, scale="none", leave_one_out=True)
    assert advantages == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_leaving_one_out_still_divides_by_the_deviation_of_the_whole_group():
    # Without the success the others do not differ at all; the group's std is 1/2.
    advantages = group_advantages(REWARDS, ONE_GROUP, scale="std", leave_one_out=True)
    assert advantages == pytest.approx([2, -2 / 3, -2 / 3, -2 / 3], rel=1e-5)


def test_leaving_one_out_equals_a_loop_over_completions():
    rng = np.random.default_rng(0)
    rewards, groups = rng.normal(size=12), rng.permutation(np.repeat([3, 5, 9], 4))
    advantages = group_advantages(rewards, groups, scale="none", leave_one_out=True)
    for i in range(12):
        others = [rewards[j] for j in range(12) if groups[j] == groups[i] and j != i]
        assert advantages[i] == pytest.approx(rewards[i] - np.mean(others), rel=1e-5)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_equal_rewards_give_exactly_zero_whatever_the_scale(leave_one_out):
    rewards = np.full(8, 0.1, np.float32)
    for scale in ("std", "none", "batch"):
        assert not group_advantages(rewards, np.zeros(8, np.int64), scale=scale, leave_one_out=leave_one_out).any()


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_rounding_residue_in_a_group_does_not_become_an_advantage(leave_one_out):
    rewards = np.array([0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.1, 1.0, 0.0, 0.0, 1.0])
    groups = np.repeat([0, 1], 4)
    for scale in ("std", "none", "batch"):
        advantages = group_advantages(rewards, groups, scale=scale, leave_one_out=leave_one_out)
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


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_group_of_one_has_no_advantage(leave_one_out):
    assert group_advantages(np.array([3.0]), np.array([0]), leave_one_out=leave_one_out).tolist() == [0.0]


def test_no_sequences_give_no_advantages():
    assert group_advantages(np.zeros(0, np.float32), np.zeros(0, np.int64)).shape == (0,)


def batch_of(lengths: list[int], groups: list[int]) -> SequenceBatch:
    """Completions of these lengths, each after one prompt token."""
    return SequenceBatch.from_lists(
        [np.zeros(n + 1) for n in lengths],
        token_columns={"loss_mask": [np.arange(n + 1).astype(bool).astype(np.float32) for n in lengths]},
        sequence_columns={"group": np.array(groups)},
    )


def test_rewards_are_whitened_over_tokens():
    # R = 1 on three tokens, 0 on one: mean 3/4, std √(3/16) = 0.4330127
    batch = batch_of([3, 1], [0, 1])
    advantages = whitened_advantages(np.array([1.0, 0.0]), np.zeros(6), batch, group_baseline=False)
    assert advantages == pytest.approx([0, 0.5773503, 0.5773503, 0.5773503, 0, -1.7320508], rel=1e-5)
    assert advantages.dtype == np.float32


def test_a_token_answers_for_the_penalties_of_itself_and_those_after_it():
    # Penalties 0.1, 0.2, 0.3 and 0.4 | R = 1, 0: what is left is 1 - 0.6, 1 - 0.5, 1 - 0.3 and -0.4
    batch = batch_of([3, 1], [0, 1])
    penalties = np.array([9.0, 0.1, 0.2, 0.3, 9.0, 0.4])  # those of the prompt do not count
    left = np.array([0.4, 0.5, 0.7, -0.4])
    advantages = whitened_advantages(np.array([1.0, 0.0]), penalties, batch, group_baseline=False)
    assert advantages[[1, 2, 3, 5]] == pytest.approx((left - left.mean()) / left.std(), rel=1e-5)
    assert advantages[[0, 4]].tolist() == [0.0, 0.0]


def test_the_baseline_variant_subtracts_the_mean_of_the_group_first():
    # Group means 1/2 and 5: what is left is ±1/2 and ±1, all of one token; std √(2.5 / 4)
    batch = batch_of([1, 1, 1, 1], [0, 0, 1, 1])
    rewards = np.array([1.0, 0.0, 6.0, 4.0])
    advantages = whitened_advantages(rewards, np.zeros(8), batch, group_baseline=True)
    assert advantages[1::2] == pytest.approx(np.array([0.5, -0.5, 1, -1]) / np.sqrt(0.625), rel=1e-5)
    without = whitened_advantages(rewards, np.zeros(8), batch, group_baseline=False)
    assert (without[1::2] > 0).tolist() == [False, False, True, True]


def test_equal_rewards_are_whitened_to_exactly_zero():
    batch = batch_of([3, 1], [0, 0])
    for baseline in (False, True):
        rewards = np.full(2, 0.1, np.float32)
        assert not whitened_advantages(rewards, np.zeros(6), batch, group_baseline=baseline).any()


def test_groups_whose_rewards_differ_are_found_as_wholes():
    rewards = np.array([1, 1, 0, 1, 0, 0, 0, 0], np.float32)
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    assert varied_groups(rewards, groups).tolist() == [False, False, True, True] + [False] * 4
    assert not varied_groups(np.full(8, 0.1, np.float32), np.zeros(8, np.int64)).any()


def test_the_share_of_groups_without_advantages_counts_groups_not_sequences():
    advantages = [[0, 0], [0], [1, 0], [-1], [0], [0], [], [0, 0]]
    batch = SequenceBatch.from_lists(
        [np.zeros(len(row), np.int32) for row in advantages],
        token_columns={"advantages": [np.float32(row) for row in advantages]},
        sequence_columns={"group": np.array([0, 0, 1, 1, 2, 2, 2, 2])},
    )
    assert zero_group_fraction(batch) == pytest.approx(2 / 3)
    assert zero_group_fraction(batch.select([])) == 0.0
