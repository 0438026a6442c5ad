import os
import signal

import pytest
from rl_core.errors import Interrupted, Preempted
from rl_core.training.signals import StopRequest, listen, stop_on_interrupt


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_ctrl_c_asks_once_and_stops_at_once_the_second_time():
    with stop_on_interrupt() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        error = stop.error("stopped after step 3")
        assert (type(error), str(error), error.exit_code) == (Interrupted, "stopped after step 3", 130)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_asks_however_often_it_comes_and_ends_with_143():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_interrupt() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        error = stop.error("stopped after step 3")
    assert (type(error), str(error), error.exit_code) == (Preempted, "SIGTERM: stopped after step 3", 143)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_a_library_puts_in_between_is_replaced():
    with stop_on_interrupt() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        listen(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_the_first_reason_counts():
    stop = StopRequest()
    stop.request()
    stop.request(Preempted, reason="SIGTERM: ")
    assert type(stop.error("x")) is Interrupted


def test_the_time_limit_leaves_room_for_another_step_as_long_as_the_longest():
    clock = Clock()
    stop = StopRequest(limit_s=150.0, clock=clock)
    stopped = []
    clock.now += 50.0  # loading
    stop.steps_begin()
    for took in (10.0, 30.0, 10.0, 10.0, 10.0):
        clock.now += took
        stop.step_done()
        stopped.append(bool(stop))
    # At 110 s another 30 s fit; at 120 s they would end at 150 s.
    assert stopped == [False, False, False, False, True]
    assert str(stop.error("stopped after step 5")) == "run.save_before_timeout: stopped after step 5"


def test_without_a_limit_time_does_not_stop_a_run():
    clock = Clock()
    stop = StopRequest(clock=clock)
    clock.now += 1e9
    stop.step_done()
    assert not stop
