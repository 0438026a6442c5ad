"""Batches sampled ahead of training: how old they may be, whatever takes how long."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_core.batch import SequenceBatch
from rl_core.contracts.feed import Draw
from rl_core.data.cursor import DataCursor
from rl_core.errors import RLError
from rl_rollout.staleness import BoundedStalenessFeed

STEPS = 6
PATIENCE_S = 120


class Recorded:
    """A feed whose batches hold one token of each version the weights had while they were sampled."""

    samples = True

    def __init__(self, pauses=(), rows_per_step=3):
        self.cursor = DataCursor(size=7, seed=1)
        self.version = 0
        self.begun = []
        self._pauses = dict(enumerate(pauses, start=1))
        self._rows = rows_per_step

    @property
    def position(self):
        return self.cursor.position

    def next(self, step):
        self.begun.append((step, self.version))
        rows = self.cursor.draw(self._rows)
        first = self.version
        time.sleep(self._pauses.get(step, 0.0))
        versions = np.arange(first, self.version + 1, dtype=np.int32)
        batch = SequenceBatch(
            np.zeros(len(versions), np.int32),
            np.array([0, len(versions)]),
            {"weights_version": versions, "loss_mask": np.ones(len(versions), np.float32)},
            {"first_row": rows[:1]},
        )
        return Draw(batch, {"rollout/reward_mean": float(rows.sum())})


def train(feed, recorded, pauses=()):
    """Draws of all steps; after each the weights get a new version."""
    draws = []
    for step in range(1, STEPS + 1):
        draws.append(feed.next(step))
        time.sleep(pauses[step - 1] if pauses else 0.0)
        recorded.version = step
    return draws


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


delays = st.lists(st.sampled_from([0.0, 0.002, 0.01]), min_size=STEPS, max_size=STEPS)


@settings(max_examples=25)
@given(max_staleness=st.integers(0, 4), sampling=delays, training=delays)
def test_no_token_is_older_than_allowed_whatever_takes_how_long(max_staleness, sampling, training):
    recorded = Recorded(sampling)
    draws = train(BoundedStalenessFeed(recorded, max_staleness=max_staleness, steps=STEPS), recorded, training)
    assert [step for step, _ in recorded.begun] == list(range(1, STEPS + 1)), "each once, none beyond the last"
    for step, version in recorded.begun:
        assert step <= version + 1 + max_staleness
    for step, draw in enumerate(draws, start=1):
        ages = step - 1 - draw.batch.token_columns["weights_version"]
        assert draw.metrics["rollout/staleness_max"] == max(0, ages.max()) <= max_staleness
        assert draw.metrics["rollout/staleness_mean"] == pytest.approx(ages.mean())


def test_batches_are_the_same_and_in_the_same_order_as_without_it():
    alone, prefetched = Recorded(), Recorded()
    expected = train(alone, alone)
    found = train(BoundedStalenessFeed(prefetched, max_staleness=3, steps=STEPS), prefetched)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.batch.sequence_columns["first_row"] == theirs.batch.sequence_columns["first_row"]
        assert ours.metrics["rollout/reward_mean"] == theirs.metrics["rollout/reward_mean"]


def test_without_staleness_a_batch_is_begun_when_it_is_asked_for():
    recorded = Recorded()
    train(BoundedStalenessFeed(recorded, max_staleness=0, steps=STEPS), recorded, [0.003] * STEPS)
    assert recorded.begun == [(step, step - 1) for step in range(1, STEPS + 1)]


def test_sampling_and_training_overlap():
    """A batch is sampled while the one before it is trained on: each waits for the other's beginning."""
    trained = [threading.Event() for _ in range(STEPS + 1)]

    class Waiting(Recorded):
        def next(self, step):
            draw = super().next(step)
            assert step == 1 or trained[step - 1].wait(PATIENCE_S)
            return draw

    recorded = Waiting()
    feed = BoundedStalenessFeed(recorded, max_staleness=1, steps=STEPS)
    for step in range(1, STEPS + 1):
        feed.next(step)
        trained[step].set()
        wait_until(lambda step=step: len(recorded.begun) == min(step + 1, STEPS))
        recorded.version = step


def test_the_position_in_the_data_is_that_of_the_batches_handed_out():
    recorded = Recorded()
    feed = BoundedStalenessFeed(recorded, max_staleness=4, steps=STEPS)
    feed.next(1)
    wait_until(lambda: len(recorded.begun) == 5)
    assert feed.position == 3
    feed.next(2)
    assert feed.position == 6


def test_a_failure_is_raised_for_the_step_that_needs_the_batch():
    class Failing(Recorded):
        def next(self, step):
            if step == 3:
                raise RLError("the reward failed")
            return super().next(step)

    feed = BoundedStalenessFeed(Failing(), max_staleness=4, steps=STEPS)
    feed.next(1)
    feed.next(2)
    with pytest.raises(RLError, match=r"^the reward failed$"):
        feed.next(3)


def test_weights_that_never_arrive_are_an_error():
    feed = BoundedStalenessFeed(Recorded(), max_staleness=1, steps=STEPS)
    feed.next(1)
    feed.next(2)
    with pytest.raises(RLError) as caught:
        feed.next(3)
    assert str(caught.value) == (
        "step 3: the generator answered with weights 2 versions old, more than run.max_staleness 1; "
        "it ignores new weights, or numbers them otherwise"
    )


def test_nothing_is_begun_after_close():
    recorded = Recorded()
    feed = BoundedStalenessFeed(recorded, max_staleness=1, steps=STEPS)
    feed.next(1)
    wait_until(lambda: len(recorded.begun) == 2)
    feed.close()
    thread = next((t for t in threading.enumerate() if t is feed._thread), None)
    if thread is not None:
        thread.join(60)
    assert recorded.begun == [(1, 0), (2, 0)]
