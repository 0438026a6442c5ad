"""Scores that lie about themselves or never end: the message names the true cause, and only that sample is hit."""

import itertools
import math

import pytest
from rl_core.contracts.reward import Sample
from rl_rollout.rewards.outcomes import Failure, attempt

SAMPLES = [Sample(row={}, prompt="", completion=c) for c in "ab"]


class Returns:
    def __init__(self, value):
        self.value = value

    def score(self, samples):
        return self.value


class Raises:
    def __float__(self):
        raise RuntimeError("not today")

    def __repr__(self):
        return "<raises>"


class Unspeakable:
    def __repr__(self):
        raise ValueError("no")


class BadKey:
    def __str__(self):
        raise KeyError("no name")

    def __repr__(self):
        return "<key>"


class BadItems(dict):
    def items(self):
        raise OSError("gone")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Raises(), "returned <raises>, whose __float__ raised RuntimeError: not today"),
        (math.nan, "returned nan, not a finite number"),
        (-math.inf, "returned -inf, not a finite number"),
        ("1", "returned '1', not a finite number"),
        (BadItems(reward=1.0), "returned {'reward': 1.0}; reading it raised OSError: gone"),
        ({"reward": 1.0, BadKey(): 1.0}, "returned {'reward': 1.0, <key>: 1.0}; reading it raised KeyError: 'no name'"),
    ],
)
def test_a_value_that_is_no_score_is_named(value, reason):
    assert attempt(Returns([1.0, value]), SAMPLES) == [{"reward": 1.0}, Failure(reason)]


@pytest.mark.parametrize(
    ("value", "beginning", "end"),
    [
        (10**400, "returned 1000", "0, too large for a floating-point number"),
        (10**100000, "returned an integer of 332,193 bits", ", too large for a floating-point number"),
        ("x" * 10**8, "returned 'xxxx", "', not a finite number"),
        ([0] * 10**7, "returned [0, 0, ", "...], not a finite number"),
        (Unspeakable(), "returned <Unspeakable instance at ", ">, not a finite number"),
    ],
    ids=["large", "larger", "text", "list", "unspeakable"],
)
def test_a_value_without_end_is_shown_in_short(value, beginning, end):
    _, failure = attempt(Returns([1.0, value]), SAMPLES)
    assert failure.reason.startswith(beginning)
    assert failure.reason.endswith(end)
    assert len(failure.reason) < 500


def test_a_list_of_scores_that_never_ends_is_not_read_to_its_end():
    assert attempt(Returns(itertools.repeat(1.0)), SAMPLES) == Failure("returned more than 2 scores for 2 samples")


def test_an_exception_with_endless_text_is_cut():
    class Shouts:
        def score(self, samples):
            raise KeyError("x" * 10**8)

    assert len(attempt(Shouts(), SAMPLES).reason) < 2500
