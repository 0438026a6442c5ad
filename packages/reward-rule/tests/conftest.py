"""Samples to score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rl_core.contracts.reward import Sample


@pytest.fixture
def sample() -> Callable[..., Sample]:
    def build(completion: str, answer: Any = "72", **row: Any) -> Sample:
        return Sample(
            row={"prompt": "How many clips?", "answer": answer, "__where__": "train.jsonl:3", **row},
            prompt="How many clips?",
            completion=completion,
        )

    return build
