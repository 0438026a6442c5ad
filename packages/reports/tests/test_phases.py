from __future__ import annotations

import contextlib

import numpy as np
import pytest
from clock import Clock
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.training.observers import Observers
from rl_reports.phases import LABELS, Phases, sampling_parts, timed


@pytest.fixture
def clock():
    return Clock()


def test_every_moment_of_a_step_belongs_to_one_phase(clock):
    phases = Phases(clock)
    loop = Observers(phases)
    clock.work(50)  # before the step
    with loop.step(1):
        clock.work(1)
        with loop.phase("algorithm"):
            clock.work(2)
            with loop.phase("train"):
                clock.work(4)
            clock.work(8)
        with loop.phase("weights"):
            clock.work(16)
        clock.work(32)
    clock.work(50)  # between steps
    with loop.step(2), loop.phase("weights"):
        clock.work(0.5)
    steps, seconds = phases.take()
    assert (steps, {name: s for name, s in seconds.items() if s}) == (
        2,
        {"rest": 33.0, "algorithm": 10.0, "train": 4.0, "weights": 16.5},
    )
    assert phases.take() == (0, {})


def test_a_step_that_ends_with_an_error_counts(clock):
    phases = Phases(clock)
    loop = Observers(phases)
    with contextlib.suppress(KeyboardInterrupt), loop.step(1), loop.phase("checkpoint"):
        clock.work(3)
        raise KeyboardInterrupt
    steps, seconds = phases.take()
    assert (steps, sum(seconds.values()), seconds["checkpoint"]) == (1, 3.0, 3.0)


def test_the_time_of_a_batch_is_where_the_metrics_of_the_step_say(clock):
    phases = Phases(clock)
    loop = Observers(phases)
    with loop.step(1) as metrics:
        with loop.phase("sampling"):
            clock.work(8)
        metrics |= {"time/rollout_s": 5.0, "time/reward_s": 1.0}
    seconds = phases.take()[1]
    assert (seconds["rollout"], seconds["reward"], seconds["sampling"]) == (5.0, 1.0, 2.0)


def test_what_somebody_else_measured_comes_off_the_phase_it_was_part_of(clock):
    phases = Phases(clock)
    with Observers(phases).phase("train"):
        clock.work(10)
    phases.move("train", {"forward_backward": 6.0, "optimizer": 3.0})
    assert phases.take()[1] == {"train": 1.0, "forward_backward": 6.0, "optimizer": 3.0}


def test_no_more_is_moved_than_there_is(clock):
    phases = Phases(clock)
    with Observers(phases).phase("train"):
        clock.work(10)
    phases.move("train", {"forward_backward": 9.0, "optimizer": 3.0, "other": -1.0})
    phases.move("sampling", {"rollout": 1.0})
    seconds = phases.take()[1]
    assert seconds["optimizer"] == 1.0
    assert sum(seconds.values()) == 10.0
    assert min(seconds.values()) == 0.0


def test_the_time_of_a_batch_is_split_as_its_feed_says():
    rollouts = {"time/rollout_s": 5.0, "time/environment_s": 2.0, "time/reward_s": 1.0}
    assert sampling_parts(rollouts) == {"data": 0.0, "rollout": 3.0, "environment": 2.0, "reward": 1.0}
    assert sampling_parts(rollouts | {"time/wait_s": 0.25}) == {"wait": 0.25}
    assert sampling_parts({"time/data_s": 4.0})["data"] == 4.0


class Model:
    """Takes a second to answer and ten to train."""

    info = "about it"

    def __init__(self, clock: Clock):
        self._clock = clock
        self.asked: list[tuple] = []

    def forward(self, batch, outputs=("logprobs",), *, temperature=1.0):
        self._clock.work(1)
        self.asked.append(("forward", len(batch), outputs, temperature))
        return {name: np.zeros(len(batch.tokens)) for name in outputs}

    def train(self, batch, loss, *, scale=None):
        self._clock.work(10)
        self.asked.append(("train", len(batch), loss.function, scale))
        return {"loss": 1.0}


def test_calls_of_models_are_phases_by_role(clock):
    phases = Phases(clock)
    models = {name: Model(clock) for name in ("policy", "reference", "value")}
    wrapped = timed(models, Observers(phases), policy="policy")
    batch = SequenceBatch.from_lists([[1, 2], [3]])
    scale = Scale.of(batch)
    for model in wrapped.values():
        model.forward(batch, ("entropy",), temperature=0.5)
    assert wrapped["policy"].train(batch, LossSpec("m:f"), scale=scale) == {"loss": 1.0}
    assert models["policy"].asked == [("forward", 2, ("entropy",), 0.5), ("train", 2, "m:f", scale)]
    assert wrapped["value"].info == "about it"
    seconds = phases.take()[1]
    assert seconds == {"old_logprobs": 1.0, "ref_logprobs": 1.0, "forward": 1.0, "train": 10.0}
    assert set(seconds) <= set(LABELS)
