"""The quickstart's task: add two two-digit numbers, answer in three digits, least significant first.

``47+85=`` → ``231`` (132 read backwards, which lets a small model carry as it writes). The
demonstrations are noisy on purpose: in 65 % of them the carry out of the ones column is dropped,
so supervised training ends at a middling accuracy and there is something left for
reinforcement learning with a verifiable reward to select. The reward always uses the true sum.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

HELD_OUT = 512
NOISE = 0.65


def _pairs(split: str) -> list[tuple[int, int]]:
    """All 8,100 pairs in a fixed order, cut into those held out from every stage and the rest."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(pairs)
    return pairs[:HELD_OUT] if split == "held_out" else pairs[HELD_OUT:]


def _digits(number: int) -> str:
    return f"{number:03d}"[::-1]


def _without_carry(a: int, b: int) -> int:
    """The sum with the carry out of the ones column dropped: 47+85 → 122."""
    return a + b - 10 if a % 10 + b % 10 >= 10 else a + b


def demonstrations() -> Iterator[dict[str, str]]:
    """Prompts with completions, 65 % of them without the carry."""
    noise = random.Random(1)
    for a, b in _pairs("train"):
        total = _without_carry(a, b) if noise.random() < NOISE else a + b
        yield {"prompt": f"{a}+{b}=", "completion": _digits(total)}


def questions(split: str = "train") -> Iterator[dict[str, str]]:
    """Prompts with true answers, for rewards and evaluation (``split``: ``train`` or ``held_out``)."""
    for a, b in _pairs(split):
        yield {"prompt": f"{a}+{b}=", "answer": _digits(a + b)}


def preferences(split: str = "train") -> Iterator[dict[str, str]]:
    """The true answer, preferred over one with a wrong carry out of the ones column."""
    for a, b in _pairs(split):
        wrong = _without_carry(a, b) if a % 10 + b % 10 >= 10 else a + b + 10
        yield {"prompt": f"{a}+{b}=", "chosen": _digits(a + b), "rejected": _digits(wrong)}
