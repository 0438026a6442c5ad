"""Held-out loss: the algorithm's own numbers on the held-out rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from rl_core.errors import ConfigError, DataError
from rl_eval_heldout.config import LossConfig
from rl_eval_heldout.loss import HeldOutLoss

ROWS = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "5+6=", "completion": "11"}]


def test_the_algorithms_metrics_on_all_rows_are_returned(context: Callable) -> None:
    result = HeldOutLoss(LossConfig(name="loss")).evaluate(context(ROWS))
    assert result.metrics == {"eval/loss": 2.5}
    assert result.samples == ()


def test_limit_takes_rows_from_the_start(context: Callable) -> None:
    assert HeldOutLoss(LossConfig(name="loss", limit=1)).evaluate(context(ROWS)).metrics == {"eval/loss": 2.0}


def test_no_rows_are_an_error(context: Callable) -> None:
    with pytest.raises(DataError) as caught:
        HeldOutLoss(LossConfig(name="loss")).evaluate(context([]))
    assert str(caught.value) == "evaluator 'loss': eval_data has no rows"


def test_an_algorithm_that_learns_from_rollouts_has_no_such_loss(context: Callable, rollouts_algorithm) -> None:
    with pytest.raises(ConfigError) as caught:
        HeldOutLoss(LossConfig(name="loss")).evaluate(context(ROWS, algorithm=rollouts_algorithm))
    assert str(caught.value) == (
        "evaluator 'loss' measures the loss on given completions, but the algorithm learns from its own\n"
        "    use the evaluator 'accuracy' with this algorithm"
    )


def test_rows_that_the_algorithm_leaves_out_are_counted(context: Callable, caplog: pytest.LogCaptureFixture) -> None:
    class LeavesOut:
        """As an algorithm that skips long rows does."""

        def __init__(self, algorithm) -> None:
            self._algorithm = algorithm
            self.plan, self.evaluate = algorithm.plan, algorithm.evaluate

        def encode(self, rows, tokenizer):
            return self._algorithm.encode([row for row in rows if len(row["completion"]) < 2], tokenizer)

    world = context(ROWS)
    with caplog.at_level(logging.WARNING):
        result = HeldOutLoss(LossConfig(name="loss")).evaluate(
            replace(world, step=0, algorithm=LeavesOut(world.algorithm))
        )
    assert result.metrics == {"eval/loss": 2.0}
    assert caplog.messages == ["1 of 2 rows of eval_data are too long and left out of the loss"]
