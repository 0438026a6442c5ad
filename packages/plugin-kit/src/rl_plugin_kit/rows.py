"""Rows that every kind of training can use: a question with its answer, a completion, and a worse one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl_core.contracts.reward import Sample


def questions(count: int = 16) -> list[dict[str, Any]]:
    """``n+1=`` with ``answer``, ``completion`` and ``chosen`` right, ``rejected`` wrong, and a ``label``."""
    return [
        {
            "prompt": f"{n}+1=",
            "answer": str(n + 1),
            "completion": str(n + 1),
            "chosen": str(n + 1),
            "rejected": str(n),
            "label": n % 2 == 0,
            "__where__": f"questions:{n + 1}",
        }
        for n in range(count)
    ]


def write_questions(path: Path, count: int = 16) -> Path:
    """The same as a JSON-lines file."""
    rows = [{name: value for name, value in row.items() if name != "__where__"} for row in questions(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers() -> list[Sample]:
    """Completions of one question: right, wrong, empty, cut off, and in other alphabets."""
    row = questions(2)[1]
    completions = ("2", "The answer is 2.", "3", "", "\\boxed{2}", "2 + ", "二 — ²\n\n")
    return [
        Sample(row, row["prompt"], text, completion_tokens=len(text) + 1, truncated=text.endswith("+ "))
        for text in completions
    ]
