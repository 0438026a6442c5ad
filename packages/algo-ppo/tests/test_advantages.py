from __future__ import annotations

import time

import numpy as np
import pytest
from rl_algo_ppo.advantages import explained_variance, generalized_advantages, token_rewards


def one_sequence(rewards, values, *, mask=None, gamma=1.0, lam=0.95, terminal=None):
    length = len(rewards)
    return generalized_advantages(
        np.array(rewards, np.float64),
        np.array(values, np.float32),
        np.ones(length, np.float32) if mask is None else np.array(mask, np.float32),
        np.zeros(length, np.int64),
        gamma=gamma,
        lam=lam,
        terminal_values=None if terminal is None else np.array([terminal], np.float32),
    )


def naive(rewards, values, mask, sequence_ids, *, gamma, lam, terminal_values):
    """Token by token from the end, in plain Python."""
    advantages, returns = np.zeros(len(mask)), np.zeros(len(mask))
    for sequence, terminal in enumerate(terminal_values):
        following, running = float(terminal), 0.0
        for t in reversed(np.flatnonzero(sequence_ids == sequence).tolist()):
            if mask[t] == 0:
                continue
            delta = float(rewards[t]) + gamma * following - float(values[t])
            running = delta + gamma * lam * running
            advantages[t], returns[t] = running, running + float(values[t])
            following = float(values[t])
    return advantages, returns


def random_batch(seed, sequences=40, longest=30):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, sequences)
    sequence_ids = np.repeat(np.arange(sequences), lengths)
    total = len(sequence_ids)
    mask = (rng.random(total) < 0.6).astype(np.float32)
    values = rng.normal(size=total).astype(np.float32)
    return rng, mask, sequence_ids, values


def test_three_steps_with_a_reward_at_the_end():
    # δ = 0, 0, 1 - 1/2; A_2 = 0.5, A_1 = 0.95 · 0.5 = 0.475, A_0 = 0.95 · 0.475 = 0.45125
    advantages, returns = one_sequence([0, 0, 1], [0.5, 0.5, 0.5])
    assert advantages == pytest.approx([0.45125, 0.475, 0.5])
    assert returns == pytest.approx([0.95125, 0.975, 1.0])
    assert advantages.dtype == returns.dtype == np.float32


def test_a_discount_shrinks_what_comes_later():
    # γ = 0.9, λ = 0.5: δ_1 = 1 - 0.4 = 0.6; δ_0 = 0.9 · 0.4 - 0.2 = 0.16; A_0 = 0.16 + 0.45 · 0.6 = 0.43
    advantages, returns = one_sequence([0, 1], [0.2, 0.4], gamma=0.9, lam=0.5)
    assert advantages == pytest.approx([0.43, 0.6])
    assert returns == pytest.approx([0.63, 1.0])


def test_prompt_and_tool_output_are_bridged():
    # The two prompt tokens and the tool output in the middle are no steps: the steps are those of
    # the three-step example, whatever rewards and values stand at the other tokens.
    advantages, returns = one_sequence([9, 9, 0, 0, 9, 9, 1], [7, 7, 0.5, 0.5, 7, 7, 0.5], mask=[0, 0, 1, 1, 0, 0, 1])
    assert advantages == pytest.approx([0, 0, 0.45125, 0.475, 0, 0, 0.5])
    assert returns == pytest.approx([0, 0, 0.95125, 0.975, 0, 0, 1.0])


def test_tool_output_at_the_end_is_bridged_too():
    advantages, _ = one_sequence([0, 0, 1, 0], [0.5, 0.5, 0.5, 3], mask=[1, 1, 1, 0])
    assert advantages == pytest.approx([0.45125, 0.475, 0.5, 0])


def test_a_truncated_sequence_ends_with_the_value_of_its_last_state():
    # terminal value 0.8: δ_2 = 0 + 0.8 - 0.5 = 0.3, A_1 = 0.95 · 0.3 = 0.285, A_0 = 0.95 · 0.285 = 0.27075
    advantages, returns = one_sequence([0, 0, 0], [0.5, 0.5, 0.5], terminal=0.8)
    assert advantages == pytest.approx([0.27075, 0.285, 0.3])
    assert returns == pytest.approx([0.77075, 0.785, 0.8])


def test_lambda_one_gives_rewards_minus_values_and_lambda_zero_one_step_errors():
    rewards, values = [0.1, -0.3, 1.0], [0.4, 0.2, 0.7]
    assert one_sequence(rewards, values, lam=1.0)[1] == pytest.approx([0.8, 0.7, 1.0])
    assert one_sequence(rewards, values, lam=0.0)[0] == pytest.approx([0.1 + 0.2 - 0.4, -0.3 + 0.7 - 0.2, 0.3])


@pytest.mark.parametrize("seed", range(5))
def test_ragged_batches_agree_with_a_loop_over_tokens(seed):
    rng, mask, sequence_ids, values = random_batch(seed)
    rewards, terminal = rng.normal(size=len(mask)), rng.normal(size=40)
    gamma, lam = rng.random(2)
    options = {"gamma": gamma, "lam": lam, "terminal_values": terminal}
    ours = generalized_advantages(rewards, values, mask, sequence_ids, **options)
    expected = naive(rewards, values, mask, sequence_ids, **options)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [np.zeros(0, np.float32), np.zeros(3, np.float32)])
def test_without_any_step_there_are_no_advantages(mask):
    ids = np.zeros(len(mask), np.int64)
    advantages, returns = generalized_advantages(
        mask.astype(np.float64), mask, mask, ids, gamma=1.0, lam=0.95, terminal_values=np.ones(1)
    )
    assert advantages.tolist() == returns.tolist() == [0.0] * len(mask)


def test_256_completions_of_512_tokens_take_at_most_a_third_of_the_time_of_a_loop_over_tokens():
    sequence_ids = np.repeat(np.arange(256), 512)
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=len(sequence_ids)), rng.normal(size=len(sequence_ids)).astype(np.float32)
    whole = rewards, values, np.ones(len(sequence_ids), np.float32), sequence_ids
    part = sequence_ids < 16  # the loop looks for its sequence among all tokens
    options = {"gamma": 1.0, "lam": 0.95, "terminal_values": np.zeros(256)}
    ours = min(_seconds(generalized_advantages, whole, options) for _ in range(5))
    loop = min(_seconds(naive, [x[part] for x in whole], options | {"terminal_values": np.zeros(16)}) for _ in range(3))
    assert ours < 16 * loop / 3


def _seconds(function, arrays, options):
    """Of processor time of this thread, which other processes take nothing of."""
    started = time.thread_time()
    function(*arrays, **options)
    return time.thread_time() - started


def test_the_reward_arrives_at_the_last_step_and_penalties_at_every_one():
    mask = np.array([0, 1, 1, 0, 0, 0, 1, 0], np.float32)  # three sequences of 4, 1 and 3 tokens
    sequence_ids = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    penalties = np.arange(8) / 10
    rewards = token_rewards(np.array([1.0, 5.0, -2.0]), mask, sequence_ids, penalties=penalties)
    assert rewards == pytest.approx([0, -0.1, 1 - 0.2, 0, 0, 0, -2 - 0.6, 0])
    assert token_rewards(np.array([1.0, 5.0, -2.0]), mask, sequence_ids).tolist() == [0, 0, 1, 0, 0, 0, -2, 0]


def test_explained_variance_by_hand():
    # returns 0, 1, 2: variance 2/3; errors 0, 0.5, 0.5: mean 1/3, variance (1/9 + 1/36 + 1/36) / 3 = 1/18
    returns, mask = np.array([0, 1, 2, 99.0]), np.array([1, 1, 1, 0.0])
    assert explained_variance(np.array([0, 0.5, 1.5, 0]), returns, mask) == pytest.approx(1 - (1 / 18) / (2 / 3))
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(np.full(4, 0.3), returns, mask) == pytest.approx(0.0)


def test_explained_variance_of_equal_returns_is_zero():
    assert explained_variance(np.arange(3.0), np.ones(3), np.ones(3)) == 0.0
    assert explained_variance(np.zeros(2), np.zeros(2), np.zeros(2)) == 0.0
