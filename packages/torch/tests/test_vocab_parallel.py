"""A vocabulary that ranks share gives what one rank gets from all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import Ranks

sys.path.insert(0, str(Path(__file__).parent))

import vocab_ranks


@pytest.fixture
def pair() -> Iterator[Ranks]:
    """Two ranks."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def test_values_and_gradients_equal_those_of_the_whole_vocabulary(pair: Ranks) -> None:
    assert pair(vocab_ranks.compare) == [vocab_ranks.CASES] * 2
