"""Data by seed: characters at random, in lengths at random. Every system gets the same rows in the same order."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from compare.workloads import CHARACTERS, FIRST_CHARACTER, Workload

PROMPT = 8
"""Tokens of a prompt where the workload does not say."""


def make_rows(workload: Workload, steps: int, *, seed: int = 0) -> list[dict[str, str]]:
    """The rows of ``steps`` steps, in the order of training; the first steps' do not depend on ``steps``."""
    draw = random.Random(f"{workload.kind} {workload.lengths} {workload.completions} {seed}")
    return [row for _ in range(steps) for row in _of_one_step(workload, draw)]


def completion_lengths(workload: Workload) -> list[int]:
    """Tokens of the completions to each prompt of a step, the end token included: spread evenly over their range."""
    low, high = workload.completions
    return [round(low + (high - low) * i / max(workload.rows - 1, 1)) for i in range(workload.rows)]


def level_of(character: str) -> int:
    """How many characters a countdown model writes behind this one, before it ends; see ``models.py``."""
    return (ord(character) - FIRST_CHARACTER) // 2


def _of_one_step(workload: Workload, draw: random.Random) -> Iterator[dict[str, str]]:
    if workload.kind == "grpo":
        lengths = completion_lengths(workload)
        draw.shuffle(lengths)
        for length in lengths:
            last = chr(FIRST_CHARACTER + 2 * (length - 1) + draw.randrange(2))
            yield {"prompt": _text(draw, draw.randint(*workload.lengths) - 1) + last}
        return
    for _ in range(workload.rows):
        prompt = _text(draw, min(PROMPT, workload.lengths[0] - 2))
        names = ("completion",) if workload.kind == "sft" else ("chosen", "rejected")
        # One token less than the length: the end token is added by whoever tokenizes.
        yield {"prompt": prompt} | {
            name: _text(draw, draw.randint(*workload.lengths) - len(prompt) - 1) for name in names
        }


def _text(draw: random.Random, length: int) -> str:
    return "".join(chr(FIRST_CHARACTER + draw.randrange(CHARACTERS)) for _ in range(length))


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> Path:
    """As JSON lines; returns ``path``."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
