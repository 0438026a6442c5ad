"""What a loss function is given, and how its metrics add up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.errors import ConfigError
from rl_torch.losses import LossBatch, MetricSums, TokenOutputs, call_loss, load_loss

torch.set_num_threads(1)


def outputs(ids: list[int], count: int) -> TokenOutputs:
    return TokenOutputs(None, None, None, None, sequence_ids=torch.tensor(ids), num_sequences=count)


def batch() -> SequenceBatch:
    return SequenceBatch.from_lists(
        [[1, 2], [3]],
        token_columns={"loss_mask": [np.ones(2, np.float64), np.zeros(1, np.float64)]},
        sequence_columns={"truncated": np.array([True, False]), "group": np.array([4, 5], np.int32)},
    )


def test_sums_and_means_per_sequence_have_gradients() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    seen = outputs([0, 0, 2, 2], 3)
    assert seen.sum_per_sequence(x).tolist() == [3.0, 0.0, 12.0]
    means = seen.mean_per_sequence(x, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert means.tolist() == [1.5, 0.0, 4.0]
    means.sum().backward()
    assert x.grad.tolist() == [0.5, 0.5, 1.0, 0.0]


def test_columns_come_as_float32_int64_and_bool_by_item_or_attribute() -> None:
    columns = LossBatch(batch())
    assert columns["loss_mask"].dtype == columns.loss_mask.dtype == torch.float32
    assert columns["truncated"].dtype == torch.bool
    assert columns.group.dtype == columns.tokens.dtype == torch.int64
    assert columns.lengths.tolist() == [2, 1]
    assert columns.sequence_ids.tolist() == [0, 0, 1]
    assert len(columns) == 2
    assert "group" in columns
    assert "reward" not in columns


def test_a_missing_column_is_answered_with_those_there_are() -> None:
    text = "the batch has no column 'advantages'; it has group, lengths, loss_mask, sequence_ids, tokens, truncated"
    with pytest.raises(KeyError) as caught:
        LossBatch(batch())["advantages"]
    assert caught.value.args == (text,)
    with pytest.raises(AttributeError) as caught:
        _ = LossBatch(batch()).advantages
    assert str(caught.value) == text


def test_writing_to_a_column_does_not_reach_the_batch() -> None:
    data = batch()
    data.token_columns["loss_mask"].flags.writeable = False
    LossBatch(data)["loss_mask"].zero_()
    assert data.token_columns["loss_mask"].tolist() == [1, 1, 0]


def test_metrics_add_up_except_maxima_and_minima() -> None:
    sums = MetricSums()
    sums.add({"loss": torch.tensor(1.0), "kl/max_gap": torch.tensor(3.0), "min_x": 2.0, "maximum": 1})
    sums.add({"loss": torch.tensor(0.5), "kl/max_gap": 2.0, "min_x": torch.tensor(-1.0), "maximum": 1})
    assert sums.result() == {"loss": 1.5, "kl/max_gap": 3.0, "min_x": -1.0, "maximum": 2.0}


def test_a_nan_metric_stays_nan() -> None:
    sums = MetricSums()
    sums.add({"max_x": torch.tensor(math.nan), "y": torch.tensor(math.nan)})
    sums.add({"max_x": torch.tensor(1.0), "y": 1.0})
    assert all(math.isnan(v) for v in sums.result().values())


def test_a_loss_is_found_by_reference() -> None:
    assert load_loss("math:hypot") is math.hypot


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("math.hypot", "loss 'math.hypot': write it as 'package.module:function'"),
        (
            "no_such_package.losses:nll",
            "loss 'no_such_package.losses:nll': No module named 'no_such_package'\n"
            "    is the package that holds no_such_package.losses installed on every machine?",
        ),
        ("json:nll", f"loss 'json:nll': json ({__import__('json').__file__}) has no function 'nll'"),
    ],
)
def test_a_loss_that_cannot_be_found_says_where_it_was_sought(reference: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_loss(reference)
    assert str(caught.value) == message


def test_options_reach_the_loss_and_a_wrong_result_is_refused() -> None:
    def per_token(outputs, batch, scale, *, factor):
        return factor * batch.loss_mask, {}

    arguments = (LossSpec("mine:per_token", options={"factor": 2}), outputs([0, 0, 1], 2), LossBatch(batch()))
    with pytest.raises(TypeError) as caught:
        call_loss(per_token, *arguments, Scale(1, 1, 1))
    assert str(caught.value) == (
        "loss 'mine:per_token' must return (scalar tensor, {metric: number}), got (tensor of shape [3], dict)"
    )
