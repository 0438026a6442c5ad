"""The training loop where there is nothing to train on."""

import logging
from types import SimpleNamespace

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.run.loop import Loop


class Refuses:
    def step(self, batch, models):
        raise AssertionError("it must not be asked to train on nothing")


def test_a_step_whose_samples_were_all_dropped_trains_nothing(caplog):
    parts = SimpleNamespace(stage=SimpleNamespace(name="train"), driver=SimpleNamespace(algorithm=Refuses()))
    loop = Loop(parts=parts, checkpoints=None, loggers=None, hooks=None, stop=None, directory=None)
    empty = SequenceBatch.from_lists([[1, 2]]).select(np.zeros(1, bool))
    with caplog.at_level(logging.WARNING, logger="rl"):
        metrics = loop._train(7, empty)
    assert metrics == dict.fromkeys(("train/tokens", "train/loss_tokens", "train/sequences", "time/train_s"), 0.0)
    assert [r.getMessage() for r in caplog.records] == [
        "train: step 7 has nothing to train on; the weights stay as they are"
    ]
