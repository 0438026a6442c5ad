from types import SimpleNamespace

import pytest
from rl_core.contracts.reward import Sample
from rl_core.errors import RLError
from rl_core.rollout.rewards import RewardPipeline

SAMPLES = [Sample(row={"answer": "a"}, prompt="p", completion=c) for c in ("a", "b")]


def choice(name, weight=1.0):
    return SimpleNamespace(name=name, package="rl-mine", config=SimpleNamespace(weight=weight))


class Fixed:
    def __init__(self, scores):
        self.scores = scores

    def score(self, samples):
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores


class Later(Fixed):
    async def score(self, samples):
        return self.scores


def test_rewards_are_added_up_with_their_weights():
    pipeline = RewardPipeline([(choice("one", 2.0), Fixed([1, 0])), (choice("two", 0.5), Later([1.0, 1.0]))])
    total, metrics = pipeline.score(SAMPLES)
    assert total.tolist() == [2.5, 0.5]
    assert metrics == {"rollout/one/reward_mean": 0.5, "rollout/two/reward_mean": 1.0}


def test_further_numbers_of_a_reward_become_metrics():
    scores = [{"reward": 1.0, "format": 1.0}, {"reward": 0.0, "format": 0.0}]
    total, metrics = RewardPipeline([(choice("mine"), Fixed(scores))]).score(SAMPLES)
    assert total.tolist() == [1.0, 0.0]
    assert metrics == {"rollout/mine/format": 0.5}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "reward 'mine' (rl-mine) returned 1 scores for 2 samples"),
        ([1.0, float("nan")], "reward 'mine' (rl-mine) returned nan for sample 1"),
        (["x", 1.0], "reward 'mine' (rl-mine) returned 'x' for sample 0, not a number"),
        ([{}, 1.0], "reward 'mine' (rl-mine) returned a dict without the key 'reward' for sample 0: {}"),
        (KeyError("gold"), "reward 'mine' (rl-mine) raised KeyError: 'gold'"),
    ],
)
def test_a_bad_reward_is_named_with_its_package(scores, message):
    with pytest.raises(RLError) as raised:
        RewardPipeline([(choice("mine"), Fixed(scores))]).score(SAMPLES)
    assert str(raised.value) == message
