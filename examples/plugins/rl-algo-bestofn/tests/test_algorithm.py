from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rl_algo_bestofn.algorithm import BestOfN
from rl_algo_bestofn.config import BestOfNConfig
from rl_algo_bestofn.selection import best_of_groups
from rl_core.batch import SequenceBatch
from rl_torch.testing import GruModel

torch.set_num_threads(1)


def rollouts(rewards: list[float]) -> SequenceBatch:
    """Two prompts with two completions each, all different."""
    sequences = [[1, 2, 3 + index, 4 + index] for index in range(4)]
    return SequenceBatch.from_lists(
        sequences,
        token_columns={"loss_mask": [np.array([0, 0, 1, 1], np.float32)] * 4},
        sequence_columns={"reward": np.array(rewards, np.float32), "group": np.array([0, 0, 1, 1])},
    )


def logprobs(policy: GruModel, batch: SequenceBatch) -> np.ndarray:
    return policy.forward(batch)["logprobs"].reshape(len(batch), -1).sum(1)


def test_the_highest_rewards_of_each_group_are_selected():
    rewards, groups = np.array([0.1, 0.9, 0.5, 0.2, 0.2, 0.7]), np.array([4, 4, 4, 1, 1, 1])
    assert best_of_groups(rewards, groups).tolist() == [1, 5]
    assert best_of_groups(rewards, groups, keep=2).tolist() == [1, 2, 3, 5]
    assert best_of_groups(rewards, groups, keep=2, min_reward=0.5).tolist() == [1, 2, 5]


def test_the_selected_completions_become_more_likely():
    policy, batch = GruModel(), rollouts([1.0, 0.0, 0.25, 0.75])
    before = logprobs(policy, batch)
    for _ in range(20):
        metrics = BestOfN(BestOfNConfig(name="bestofn", group_size=2)).step(batch, {"policy": policy})
    gains = logprobs(policy, batch) - before
    assert gains[0] > gains[1]
    assert gains[3] > gains[2]
    assert metrics["bestofn/selected_fraction"] == 0.5
    assert metrics["bestofn/selected_reward_mean"] == 0.875
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} < set(metrics)


def test_nothing_is_trained_where_no_completion_is_good_enough():
    policy = GruModel()
    before = policy.weights()
    algorithm = BestOfN(BestOfNConfig(name="bestofn", group_size=2, min_reward=0.5))
    assert algorithm.step(rollouts([0.1, 0.2, 0.3, 0.4]), {"policy": policy}) == {"bestofn/selected_fraction": 0.0}
    assert np.array_equal(policy.weights(), before)


def test_keeping_all_is_refused():
    with pytest.raises(ValidationError, match="keep 8 of group_size 8 selects nothing; lower keep"):
        BestOfNConfig(name="bestofn", keep=8)
