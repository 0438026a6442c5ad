"""What evaluators are given of a stage, and what is counted beside them."""

from types import SimpleNamespace

import numpy as np
from rl_core.component import Component, ComponentChoice
from rl_core.config.sections import RewardConfig
from rl_core.contracts.evaluator import EvaluationResult
from rl_core.contracts.reward import Sample
from rl_core.rewards.pipeline import InThisProcess, RewardPipeline
from rl_core.training.evaluation import evaluate

SAMPLES = [Sample(row={}, prompt="", completion=text) for text in ("ab", "", "abc")]


class Length:
    def score(self, samples):
        return [len(s.completion) or float("nan") for s in samples]


class Scored:
    def evaluate(self, context):
        return EvaluationResult({"eval/unscored": float(np.isnan(context.score(SAMPLES)).sum())})


def chosen(kind, **fields):
    component = Component(kind, "mine", "mine:Mine", "mine:MineConfig", "")
    return ComponentChoice(kind, "mine", component, "rl-mine", RewardConfig(name="mine", **fields))


def metrics(on_error):
    rewards = RewardPipeline([(chosen("reward", on_error=on_error), InThisProcess(Length()))])
    driver = SimpleNamespace(rewards=rewards, eval_rows=[], tokenizer=None, algorithm=None)
    stage = SimpleNamespace(run=SimpleNamespace(seed=0))
    parts = SimpleNamespace(router=None, driver=driver, stage=stage, models={})
    return evaluate(parts, [(chosen("evaluator"), Scored())], 1)[0]


def test_rewards_that_fail_in_an_evaluation_are_counted_there():
    counts = {"eval/reward_failures": 1.0, "eval/reward_timeouts": 0.0}
    assert metrics("drop") == {"eval/unscored": 1.0, "eval/reward_dropped": 1.0, **counts}
    assert metrics("zero") == {"eval/unscored": 0.0, "eval/reward_dropped": 0.0, **counts}
