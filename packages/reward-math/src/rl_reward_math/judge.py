"""One verdict: whether an answer equals the reference answer. Runs in a process of its own.

math-verify parses and compares. Its own timeouts are alarms, which only work in a main thread and
count as "not equal", so they are off: whoever calls this keeps the deadline and kills the process.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, Float, MatrixBase, Rational, UnevaluatedExpr
from sympy.logic.boolalg import BooleanAtom

from rl_reward_math import spelling
from rl_reward_math.verdict import Question, Verdict

# spelling.without_units removes units; math-verify takes a trailing variable (3m, x + 3t) for one.
_LATEX = LatexExtractionConfig(
    boxed_match_priority=0, normalization_config=replace(LatexExtractionConfig().normalization_config, units=False)
)


@dataclass(frozen=True)
class _Gold:
    text: str
    plain: str  # without units
    words: str | None
    based: tuple[str, int] | None
    numeric: bool
    parsed: tuple[Any, ...]


class Judge:
    """The service in a process; ``float_rounding`` as in :func:`judge`."""

    def __init__(self, float_rounding: int | None) -> None:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)  # math-verify logs what it cannot read
        self._float_rounding = float_rounding
        # Imports what takes long, so that a deadline covers a verdict and nothing else.
        self(Question(gold=r"\frac{1}{2}", answer="1-x"))
        self(Question(gold="72", answer=None, completion="The answer is $70+3$."))

    def __call__(self, question: Question) -> str:
        """The verdict's value."""
        return judge(question, float_rounding=self._float_rounding).value


def judge(question: Question, *, float_rounding: int | None = None) -> Verdict:
    """Compare the marked answer, or without one what math-verify finds in the whole completion, with the gold one.

    Args:
        float_rounding: decimal places for comparing decimal numbers; None compares their exact values.
    """
    reference = _gold(question.gold)
    if question.answer is not None:
        return _judge_answer(reference, question.answer, float_rounding)
    return _judge_completion(reference, question.completion, float_rounding)


def _judge_answer(reference: _Gold, answer: str, float_rounding: int | None) -> Verdict:
    text = spelling.normal(answer)
    if text in (reference.text, reference.plain):
        return Verdict.EQUAL
    if not text:
        return Verdict.UNPARSED
    if reference.words is not None:
        return Verdict.EQUAL if spelling.words(text) == reference.words else Verdict.UNEQUAL
    text = spelling.without_units(text, bare=reference.numeric)
    if text == reference.plain:
        return Verdict.EQUAL
    if spelling.ambiguous(text):
        return Verdict.UNPARSED
    based = spelling.based(text)
    if based is not None and (reference.based is not None or based[1] != 10):
        # math-verify drops the base; an answer may leave it out but not get it wrong.
        return Verdict.EQUAL if based == reference.based else Verdict.UNEQUAL
    return _compare(reference, _expressions(_read(f"\\boxed{{{text}}}", [_LATEX])), float_rounding)


def _judge_completion(reference: _Gold, completion: str, float_rounding: int | None) -> Verdict:
    if spelling.normal(completion) == reference.text or reference.words == spelling.words(completion) is not None:
        return Verdict.EQUAL
    results = _read(spelling.characters(completion), [_LATEX, ExprExtractionConfig()])
    text = next((result for result in results if isinstance(result, str)), None)
    verdict = Verdict.UNPARSED if text is None else _judge_answer(reference, text, float_rounding)
    if verdict is Verdict.EQUAL or reference.words is not None:
        return verdict
    # Several expressions ("$1$ and $2$") are one set here, and no text that can be read.
    return _compare(reference, _expressions(results), float_rounding)


@lru_cache(maxsize=256)
def _gold(gold: str) -> _Gold:
    text = spelling.normal(gold)
    plain = spelling.without_units(text, bare=True)
    if not spelling.is_numeric(plain):
        plain = spelling.without_units(text, bare=False)
    words = spelling.words(plain)
    based = spelling.based(plain)
    readable = words is None and not spelling.ambiguous(plain)
    number = plain if based is None else based[0]
    parsed = _expressions(_read(f"\\boxed{{{number}}}", [_LATEX])) if readable else ()
    return _Gold(text=text, plain=plain, words=words, based=based, numeric=spelling.is_numeric(plain), parsed=parsed)


def _read(text: str, targets: list[Any]) -> list[Any]:
    """math-verify's parse of ``text``: expressions, and last the text they were read from."""
    try:
        return parse(text, targets, parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - any error of a parser that is fed model output means "not readable"
        return []


def _expressions(results: list[Any]) -> tuple[Any, ...]:
    return tuple(result for result in results if isinstance(result, Basic | MatrixBase))


def _compare(reference: _Gold, found: tuple[Any, ...], float_rounding: int | None) -> Verdict:
    if not found:
        return Verdict.UNPARSED
    equal = any(_equal(gold, one, float_rounding) for gold in reference.parsed for one in found)
    return Verdict.EQUAL if equal else Verdict.UNEQUAL


def _equal(gold: Any, found: Any, float_rounding: int | None) -> bool:
    try:
        if float_rounding is not None:
            return verify(gold, found, float_rounding=float_rounding, timeout_seconds=None, raise_on_error=True)
        gold, found = _exact(gold), _exact(found)
        numbers = _rational(gold), _rational(found)
        if None not in numbers:  # math-verify rounds: 2e-23 would equal 3e-23
            return numbers[0] == numbers[1]
        return verify(gold, found, timeout_seconds=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - expressions that cannot be compared are not shown to be equal
        return False


def _exact(expression: Any) -> Any:
    """With the value of every decimal number instead of a rounded one: 0.15 is 3/20, 0.333333 is not 1/3."""
    decimals = expression.atoms(Float)
    if not decimals:
        return expression
    exact = expression.xreplace({number: Rational(str(number)) for number in decimals})
    return expression if isinstance(exact, BooleanAtom) else exact  # an equation must stay one


def _rational(expression: Any) -> Rational | None:
    if not isinstance(expression, Expr) or expression.has(UnevaluatedExpr) or expression.free_symbols:
        return None  # UnevaluatedExpr is how math-verify keeps a percent sign
    value = expression if isinstance(expression, Rational) else expression.doit()
    return value if isinstance(value, Rational) else None
