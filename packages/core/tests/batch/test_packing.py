import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_core.batch.packing import balance, best_fit_decreasing

weights = st.lists(st.integers(0, 50), max_size=60).map(lambda w: np.array(w, np.int64))


@given(weights, st.integers(1, 8))
def test_balancing_places_every_item_once_and_evenly(items, n):
    bins = balance(items, n)
    assert sorted(i for b in bins for i in b) == list(range(len(items)))
    loads = [sum(max(int(items[i]), 1) for i in b) for b in bins]
    heaviest = max((max(int(w), 1) for w in items), default=0)
    assert max(loads) - min(loads) <= heaviest


@given(weights, st.integers(1, 64))
def test_packing_places_every_item_once_and_keeps_the_budget(items, capacity):
    bins = best_fit_decreasing(items, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(items)))
    assert all(len(b) == 1 or sum(int(items[i]) for i in b) <= capacity for b in bins)


def test_packing_fills_the_fullest_bin_that_still_fits():
    assert best_fit_decreasing(np.array([6, 5, 4, 3]), 10) == [[0, 2], [1, 3]]


def test_impossible_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"^cannot split into 0 parts$"):
        balance(np.array([1]), 0)
    with pytest.raises(ValueError, match=r"^a bin must hold at least 1 token, got 0$"):
        best_fit_decreasing(np.array([1]), 0)


def test_balance_counts_what_is_in_the_bins_already():
    assert balance(np.array([5, 5, 5, 5]), 2, loads=[0, 20]) == [[0, 1, 2, 3], []]
    assert balance(np.array([5, 5, 5, 5]), 2, loads=[0, 10]) == [[0, 1, 2], [3]]


@given(weights, st.integers(1, 8), st.integers(1, 64))
def test_the_bins_are_those_of_the_textbook_loops(items, n, capacity):
    order = sorted(range(len(items)), key=lambda i: -items[i])
    loads, balanced = [0] * n, [[] for _ in range(n)]
    rooms, packed = [], []
    for i in order:
        lightest = loads.index(min(loads))
        loads[lightest] += max(items[i], 1)
        balanced[lightest].append(i)
        fitting = [b for b, room in enumerate(rooms) if room >= max(items[i], 1)]
        if fitting:
            rooms[min(fitting, key=lambda b: rooms[b])] -= items[i]
        else:
            rooms.append(capacity - items[i])
    assert balance(items, n) == balanced
    packed = best_fit_decreasing(items, capacity)
    assert sorted(capacity - sum(int(items[i]) for i in b) for b in packed) == sorted(rooms)
