import threading

import pytest
from rl_rollout.weight_updates import WeightUpdates


def started(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_an_update_waits_for_the_end_of_a_decoding_step():
    updates, events = WeightUpdates(), []
    asked, stepped = threading.Event(), threading.Event()

    def sample():
        with updates.sampling():
            asked.set()
            stepped.wait(60)
            events.append("step")
            while not updates.between_steps():
                pass
            events.append("step")

    sampling = started(sample)
    asked.wait(60)
    updating = started(lambda: updates.apply(lambda: events.append("new weights")))
    stepped.set()
    for thread in (sampling, updating):
        thread.join(60)
    assert events == ["step", "new weights", "step"]


def test_an_update_takes_place_at_once_when_nothing_is_sampled():
    updates, events = WeightUpdates(), []
    updates.apply(lambda: events.append("new weights"))
    assert events == ["new weights"]
    with updates.sampling():
        assert not updates.between_steps()


def test_an_update_that_comes_in_the_last_step_is_made_after_it():
    updates, events = WeightUpdates(), []
    with updates.sampling():
        updating = started(lambda: updates.apply(lambda: events.append("new weights")))
        while not updates._waiting:
            pass
        assert events == []
    updating.join(60)
    assert events == ["new weights"]


def test_weights_that_do_not_fit_fail_where_they_were_sent_from_and_sampling_goes_on():
    updates, caught = WeightUpdates(), []

    def misfit():
        raise ValueError("weights do not fit")

    def update():
        with pytest.raises(ValueError, match=r"^weights do not fit$"):
            updates.apply(misfit)
        caught.append(True)

    with updates.sampling():
        updating = started(update)
        while not updates._waiting:
            pass
        assert not updates.between_steps()
    updating.join(60)
    assert caught == [True]


def test_calls_that_sample_run_one_after_the_other():
    updates, events = WeightUpdates(), []
    inside, leave = threading.Event(), threading.Event()

    def first():
        with updates.sampling():
            inside.set()
            leave.wait(60)
            events.append("first")

    def second():
        with updates.sampling():
            events.append("second")

    threads = [started(first)]
    inside.wait(60)
    threads.append(started(second))
    leave.set()
    for thread in threads:
        thread.join(60)
    assert events == ["first", "second"]
