"""Batches that do not depend on new weights are made while the one before is trained on."""

import threading
import time

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.feed import Draw
from rl_core.data.cursor import DataCursor
from rl_core.data.prefetch import Prefetch
from rl_core.errors import DataError

STEPS, ROWS, PATIENCE_S = 6, 3, 120


class Rows:
    """Three rows more each step; at ``fails_at`` an error."""

    samples = False

    def __init__(self, *, position=0, fails_at=None, error=DataError):
        self.cursor = DataCursor(size=7, seed=1, position=position)
        self.made, self._fails_at, self._error = [], fails_at, error

    @property
    def position(self):
        return self.cursor.position

    def next(self, step):
        if step == self._fails_at:
            raise self._error(f"step {step}: no rows")
        rows = self.cursor.draw(ROWS)
        self.made.append(step)
        return Draw(SequenceBatch.from_lists([[int(row)] for row in rows]), {"data/epoch": self.cursor.epoch})

    def close(self):
        pass


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batches_and_positions_are_those_without_it():
    alone, rows = Rows(), Rows()
    feed = Prefetch(rows, depth=2, steps=STEPS)
    for step in range(1, STEPS + 1):
        expected, found = alone.next(step), feed.next(step)
        assert np.array_equal(found.batch.tokens, expected.batch.tokens)
        assert found.metrics == expected.metrics
        assert feed.position == alone.position == ROWS * step


def test_it_goes_on_from_the_position_of_the_last_batch_that_was_handed_out():
    first = Prefetch(Rows(), depth=2, steps=STEPS)
    for step in (1, 2):
        first.next(step)
    alone = Rows()
    drawn = [alone.next(step).batch.tokens.tolist() for step in range(1, STEPS + 1)]
    resumed = Prefetch(Rows(position=first.position), depth=2, steps=STEPS)
    assert [resumed.next(step).batch.tokens.tolist() for step in range(3, STEPS + 1)] == drawn[2:]


@pytest.mark.parametrize("depth", [1, 2])
def test_as_many_batches_as_its_depth_are_made_before_they_are_asked_for(depth):
    rows = Rows()
    feed = Prefetch(rows, depth=depth, steps=STEPS)
    for step in range(1, STEPS + 1):
        feed.next(step)
        wait_until(lambda step=step: len(rows.made) == min(step + depth, STEPS))
        time.sleep(0.01)
        assert rows.made == list(range(1, min(step + depth, STEPS) + 1)), "none beyond the depth or the last step"


@pytest.mark.parametrize("error", [DataError, SystemExit])
def test_what_is_wrong_with_a_batch_is_raised_where_it_is_asked_for(error):
    rows = Rows(fails_at=3, error=error)
    feed = Prefetch(rows, depth=2, steps=STEPS)
    for step in (1, 2):
        feed.next(step)
    with pytest.raises(error, match=r"^step 3: no rows$"):
        feed.next(3)
    assert feed.position == 2 * ROWS


def test_closing_it_ends_its_thread():
    before = set(threading.enumerate())
    feed = Prefetch(Rows(), depth=1, steps=STEPS)
    feed.next(1)
    (thread,) = set(threading.enumerate()) - before
    feed.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
