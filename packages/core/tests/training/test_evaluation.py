"""What evaluators are given of a stage, and what is counted beside them."""

import numpy as np
from rl_core.component import Component, ComponentChoice
from rl_core.config.sections import EvaluatorConfig, RewardConfig
from rl_core.contracts.evaluator import EvaluationResult
from rl_core.contracts.reward import Sample
from rl_core.training.evaluation import Evaluations
from rl_rollout.rewards.scoring import InThisProcess, WeightedRewards

SAMPLES = [Sample(row={}, prompt="", completion=text) for text in ("ab", "", "abc")]


class Length:
    def score(self, samples):
        return [len(s.completion) or float("nan") for s in samples]


class Scored:
    def evaluate(self, context):
        return EvaluationResult({"eval/unscored": float(np.isnan(context.score(SAMPLES)).sum())})


def chosen(config):
    component = Component("reward", "mine", "mine:Mine", "mine:MineConfig", "")
    return ComponentChoice("reward", "mine", component, "rl-mine", config)


def evaluator(evaluator, every=None):
    return chosen(EvaluatorConfig(name="mine", every=every)), evaluator


def evaluations(*evaluators, rewards=None, last=10):
    return Evaluations(
        evaluators=evaluators,
        rows=[],
        tokenizer=None,
        algorithm=None,
        rewards=rewards,
        models={},
        generation=None,
        max_length=8,
        on_long="skip",
        seed=0,
        last=last,
    )


def metrics(on_error):
    rewards = WeightedRewards([(chosen(RewardConfig(name="mine", on_error=on_error)), InThisProcess(Length()))])
    return evaluations(evaluator(Scored(), every=1), rewards=rewards).run(1)[0]


def test_rewards_that_fail_in_an_evaluation_are_counted_there():
    counts = {"eval/reward_failures": 1.0, "eval/reward_timeouts": 0.0}
    assert metrics("drop") == {"eval/unscored": 1.0, "eval/reward_dropped": 1.0, **counts}
    assert metrics("zero") == {"eval/unscored": 0.0, "eval/reward_dropped": 0.0, **counts}


def test_evaluators_run_before_the_first_step_every_so_often_and_after_the_last():
    rare, often = evaluator(Scored()), evaluator(Scored(), every=4)
    assert [step for step in range(11) if evaluations(rare).due(step)] == [0, 10]
    assert [step for step in range(11) if evaluations(rare, often).due(step)] == [0, 4, 8, 10]
    assert not evaluations().due(0)
