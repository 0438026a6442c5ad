from types import SimpleNamespace

import numpy as np
import pytest
from rl_core.algorithm import AlgorithmBase, combine, mean_metrics, sampling_temperature
from rl_core.batch import SequenceBatch
from rl_core.errors import RLError


def test_partial_metrics_are_added_up_unless_their_name_says_otherwise():
    assert combine("train/loss", 1.0, 2.0) == 3.0
    assert combine("mismatch/max_gap", 1.0, 2.0) == 2.0
    assert combine("policy/min_ratio", 1.0, 2.0) == 1.0
    assert combine("max_things/mean", 1.0, 2.0) == 3.0


def test_several_updates_become_one_line():
    updates = [{"loss": 1.0, "policy/max_ratio": 3.0}, {"loss": 2.0, "policy/max_ratio": 2.0}]
    assert mean_metrics(updates) == {"train/loss": 1.5, "policy/max_ratio": 3.0}
    assert mean_metrics(updates[:1], prefix="value") == {"value/loss": 1.0, "policy/max_ratio": 3.0}


def test_the_sampling_temperature_is_one_number():
    batch = SequenceBatch.from_lists([[1], [2]])
    assert sampling_temperature(batch) == 1.0
    assert sampling_temperature(batch.with_columns(sequence={"temperature": np.float32([0.5, 0.5])})) == 0.5
    with pytest.raises(RLError) as raised:
        sampling_temperature(batch.with_columns(sequence={"temperature": np.float32([0.5, 1.0])}))
    assert str(raised.value) == (
        "a step's completions were sampled at different temperatures (0.5 to 1); log-probs can be computed at one only"
    )


def test_an_algorithm_on_rollouts_says_that_it_has_no_loss_on_rows():
    algorithm = AlgorithmBase(SimpleNamespace(name="mine"))
    with pytest.raises(RLError) as raised:
        algorithm.encode([], None)
    assert str(raised.value) == "algorithm mine trains on rollouts; it has no loss on data rows"
    assert algorithm.keep(SequenceBatch.from_lists([[1], [2]])).tolist() == [True, True]
