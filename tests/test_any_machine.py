"""The suite passes on every machine and in every order: what a test draws is always the same."""

import random

import hypothesis
import numpy as np
import torch


def assert_drawn_from_the_seed():
    assert random.random() == random.Random(1).random()
    assert np.random.rand() == np.random.RandomState(1).rand()
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))


def test_a_test_draws_what_the_seed_gives():
    assert_drawn_from_the_seed()


def test_whatever_another_test_has_drawn_before():
    assert_drawn_from_the_seed()


def test_examples_are_the_same_in_every_run_and_may_take_long():
    assert hypothesis.settings().derandomize
    assert hypothesis.settings().deadline is None
