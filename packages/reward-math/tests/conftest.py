"""Samples to score, a reward that is closed after the test, and whether a process is still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rl_core.contracts.reward import Sample
from rl_reward_math.config import MathConfig
from rl_reward_math.reward import Math


@pytest.fixture
def sample() -> Callable[..., Sample]:
    def build(completion: str, answer: Any = "72", **row: Any) -> Sample:
        return Sample(
            row={"prompt": "How many clips?", "answer": answer, "__where__": "train.jsonl:3", **row},
            prompt="How many clips?",
            completion=completion,
        )

    return build


@pytest.fixture
def reward() -> Iterator[Callable[..., Math]]:
    built: list[Math] = []

    def build(**fields: Any) -> Math:
        built.append(Math(MathConfig(name="math", **{"timeout_s": 60.0, **fields})))
        return built[-1]

    yield build
    for one in built:
        one.close()


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, and only not yet collected by its parent


@pytest.fixture
def ends() -> Callable[[int], bool]:
    def wait(pid: int, *, within_s: float = 30.0) -> bool:
        deadline = time.monotonic() + within_s
        while _running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not _running(pid)

    return wait
