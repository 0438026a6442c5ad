"""Products of two-digit numbers, and a calculator to find them with.

The demonstrations are mixed on purpose: in a part of them the answer is guessed instead of asked for, so supervised
training leaves a model that calls the tool only now and then, and reinforcement learning is left to find out that it
pays.
"""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Iterator
from typing import Any

HELD_OUT = 256
GUESSES = 0.6

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculator(expression: str) -> str:
    """Compute a sum, a difference or a product of whole numbers.

    Args:
        expression: such as 12*34 or (1+2)*3
    """
    if len(expression) > 100:
        raise ValueError("the expression is too long")
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only whole numbers, +, - and * are understood")


def _pairs(split: str) -> list[tuple[int, int]]:
    """All 8,100 pairs in a fixed order, cut into those held out and the rest."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(pairs)
    return pairs[:HELD_OUT] if split == "held_out" else pairs[HELD_OUT:]


def questions(split: str = "train") -> Iterator[dict[str, Any]]:
    """Prompts with their answers (``split``: ``train`` or ``held_out``)."""
    for a, b in _pairs(split):
        yield {"prompt": [{"role": "user", "content": f"{a}*{b}"}], "answer": str(a * b)}


def demonstrations() -> Iterator[dict[str, Any]]:
    """Whole conversations: with a call of the calculator, or with a guess."""
    noise = random.Random(1)
    for a, b in _pairs("train"):
        question = {"role": "user", "content": f"{a}*{b}"}
        if noise.random() < GUESSES:
            guess = a // 10 * (b // 10) * 100 + noise.randrange(100)
            yield {"messages": [question, {"role": "assistant", "content": f"about {guess}"}]}
        else:
            yield {
                "messages": [
                    question,
                    {"role": "assistant", "content": f"[calculator({a}*{b})]"},
                    {"role": "tool", "content": str(a * b)},
                    {"role": "assistant", "content": str(a * b)},
                ]
            }
