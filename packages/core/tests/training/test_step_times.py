from __future__ import annotations

import pytest
from clock import Clock
from rl_core.training.observers import Observers
from rl_core.training.phases import StepTimes


@pytest.fixture
def clock():
    return Clock()


def test_the_times_of_a_step_are_those_until_it_is_logged(clock):
    times = StepTimes(clock)
    loop = Observers(times)
    with loop.phase("evaluation"):
        clock.work(1)
    assert loop.metrics() == {"time/eval_s": 1.0}
    for _ in range(2):
        with loop.step(1):
            clock.work(2)
            with loop.phase("weights"):
                with loop.phase("turns"):
                    clock.work(4)
                clock.work(8)
            assert loop.metrics() == {"time/weights_s": 12.0, "time/step_s": 14.0}
            with loop.phase("logging"):
                clock.work(16)
