"""Four worker processes for the whole session, and the helper module on the path (workers import it too)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Four ranks, of which tests use as many as they need."""
    made = Ranks(4)
    yield made
    made.close()
