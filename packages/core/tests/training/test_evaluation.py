"""What evaluators are given of a stage, and what is counted beside them."""

import numpy as np
from rl_core.component import Component, ComponentChoice
from rl_core.config.sections import EvaluatorConfig
from rl_core.contracts.evaluator import EvaluationResult
from rl_core.contracts.reward import Sample
from rl_core.training.evaluation import Evaluations

SAMPLES = [Sample(row={}, prompt="", completion=text) for text in ("ab", "", "abc")]


class Failing:
    """A rollout source that scores all samples but the empty one."""

    def score(self, samples):
        rewards = np.array([len(s.completion) or np.nan for s in samples], np.float32)
        return rewards, {"reward_failures": float(np.isnan(rewards).sum())}


class Scored:
    def evaluate(self, context):
        return EvaluationResult({"eval/unscored": float(np.isnan(context.score(SAMPLES)).sum())})


def chosen(config):
    component = Component("reward", "mine", "mine:Mine", "mine:MineConfig", "")
    return ComponentChoice("reward", "mine", component, "rl-mine", config)


def evaluator(evaluator, every=None):
    return chosen(EvaluatorConfig(name="mine", every=every)), evaluator


def evaluations(*evaluators, rollouts=None, last=10):
    return Evaluations(
        evaluators=evaluators,
        rows=[],
        tokenizer=None,
        algorithm=None,
        rollouts=rollouts,
        generates=False,
        scores=rollouts is not None,
        models={},
        seed=0,
        last=last,
    )


def test_rewards_that_fail_in_an_evaluation_are_counted_there():
    found, _ = evaluations(evaluator(Scored(), every=1), rollouts=Failing()).run(1)
    assert found == {"eval/unscored": 1.0, "eval/reward_failures": 1.0}


def test_evaluators_run_before_the_first_step_every_so_often_and_after_the_last():
    rare, often = evaluator(Scored()), evaluator(Scored(), every=4)
    assert [step for step in range(11) if evaluations(rare).due(step)] == [0, 10]
    assert [step for step in range(11) if evaluations(rare, often).due(step)] == [0, 4, 8, 10]
    assert not evaluations().due(0)
