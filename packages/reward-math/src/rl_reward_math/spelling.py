r"""One spelling for the many ways to write an answer, where math-verify reads them wrongly or not at all.

Only the spelling changes, never the value: wrappers (``$…$``, ``**…**``, ``\text{…}`` around everything),
spaces, thousands separators, the degree sign, a trailing period, units after a number.
"""

from __future__ import annotations

import re
import unicodedata

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_TEXT = r"\\(?:text|mbox|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit)\s*"
_ALL_TEXT = re.compile(rf"{_TEXT}\{{([^{{}}]*)\}}")
_ASCII = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d", "-")
    | dict(zip("，．／％＄＋＝（）\u2044", ",./%$+=()/", strict=True))
)
_RAISED = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_RAISED_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_ONE_CHARACTER_FRACTION = re.compile("[¼-¾⅐-⅞]")
_CHARACTERS = str.maketrans(
    {"×": r"\times ", "÷": "/", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "\u00a0": " "}
    | {"\u202f": " ", "\u2009": " ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in "}
    | {"°": r"^\circ ", "€": "", "£": "", "¥": ""}
)
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\$", ""),  # what is left of "\\ " at the end
        (r"√\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"(?<!\\)\\!\s*|\\displaystyle\b|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\?\$", ""),
        # Not the second backslash of a row separator.
        (r"(?<!\\)\\[,;: ]|~|\\q?quad\b|\\thinspace\b|\s+", " "),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\s*\^\s*\{\s*\\circ\s*\}|\s*\^\s*\\circ(?![a-zA-Z]) ?|\s*\^?\s*\\degree(?![a-zA-Z]) ?", r"^\\circ"),
        (rf"(\^\\circ)\s*(?:{_TEXT}\{{\s*[CF]\s*\}}|[CF])$", r"\1"),
        (r"(?<!\\)%", r"\\%"),
        (r"\s*\\?%", r"\\%"),
        (r"^(-?\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
        (r" +", " "),
    )
)
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?!\d)")
# "1,23,456" may be three numbers; a group such as "00" is none.
_INDIAN_GROUPS = re.compile(r"(?<![\d,.])(?=[\d,]*,0)[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,])")
_BASE = re.compile(r"(?=[A-Z]*\d)([0-9A-Z]+)\s*_\s*\{?\s*(\d+)\s*\}?")
_NUMBERS_APART = re.compile(r"(?<![_^\d.])(?<!frac)(?<!frac )\d+(?:\.\d+)? \d")

_TEXT_UNIT = re.compile(rf"^(?P<value>.*[\w)}}\]%])\s*{_TEXT}\{{(?P<unit>[^{{}}]*)\}}(?:\^\{{?\d\}}?)?$")
_BARE_UNIT = re.compile(r"^(?P<value>.*[\d})%])(?P<gap> ?)(?P<unit>[A-Za-z][A-Za-z ./-]*)(?:\^\{?[23]\}?)?$")
_LENGTHS = frozenset(("mm", "cm", "dm", "km", "ft", "in", "mi", "yd", "sq", "cu"))
_AMOUNTS = frozenset(("mg", "kg", "lb", "lbs", "oz", "ml", "mL", "cl", "st", "nd", "rd", "th"))
_TIMES = frozenset(("hr", "hrs", "min", "mins", "sec", "secs", "ms", "mph", "kph", "kmh", "rpm", "Hz", "am", "pm"))
_ABBREVIATIONS = _LENGTHS | _AMOUNTS | _TIMES
_LETTER_UNITS = frozenset("mgshLl")
_MULTIPLIERS = frozenset(("hundred", "thousand", "million", "billion", "trillion", "dozen", "dozens"))
_PERCENT = frozenset(("percent", "percentage", "pct"))
_NO_UNITS = frozenset(("and", "or", "pi", "sin", "cos", "tan", "log", "exp", "mod"))


def characters(text: str) -> str:
    """Digits of other scripts, full-width and raised ones (``10²``), ``½`` and dashes in LaTeX's characters."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_RAISED_DIGITS)}}}", text.translate(_ASCII))
    text = _ONE_CHARACTER_FRACTION.sub(_fraction, text)
    return _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)


def _fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def normal(text: str) -> str:
    """The spelling in which answers are compared and handed to math-verify."""
    text = _unwrapped(characters(text).strip()).translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text.strip())
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    text = _INDIAN_GROUPS.sub(lambda match: match[0].replace(",", ""), text)
    return _unwrapped(_without_period(text))


def words(text: str) -> str | None:
    r"""The words of an answer that is words (a name, "even", an option "(B)") in small letters, else None.

    Letters outside ``\text{…}`` are words from four letters on: shorter ones may be a product of variables.
    """
    plain = " ".join(_ALL_TEXT.sub(r"\1", text).split()).strip(" .,;:*")
    option = re.fullmatch(r"\(?([A-Za-z])\)?", plain)
    if option:
        return option[1].casefold()
    letters = re.fullmatch(r"[^\W\d_][^\W\d_' -]*", plain) is not None
    return plain.casefold() if letters and (len(plain) > 3 or _ALL_TEXT.search(text)) else None


def based(text: str) -> tuple[str, int] | None:
    """``(digits, base)`` of a number with its base as an index, ``204_5``; None for others."""
    match = _BASE.fullmatch(text)
    return (match[1], int(match[2])) if match else None


def ambiguous(text: str) -> bool:
    """Whether two numbers are adjacent, which math-verify would add (as in a mixed number)."""
    return _NUMBERS_APART.search(text) is not None


def is_numeric(text: str) -> bool:
    """Whether no variable is in it: commands such as ``\\pi`` and ``\\sqrt`` may be."""
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is None


def without_units(text: str, *, bare: bool) -> str:
    r"""Without a unit at the end: ``5 \text{ cm}^2``, and with ``bare`` also ``5 cm`` and ``12 apples``.

    "5 million" keeps its word: that is no unit. A single letter counts as a unit only after a space, and
    ``bare`` is for answers without variables, as ``2 m`` may be a product.
    """
    match = _TEXT_UNIT.match(text)
    if match and not _ALL_TEXT.search(match["value"]):
        return _dropped(match, text)
    match = _BARE_UNIT.match(text) if bare else None
    return _dropped(match, text) if match and _is_unit(match["unit"], spaced=bool(match["gap"])) else text


def _dropped(match: re.Match[str], text: str) -> str:
    unit = re.split(r"[ ./-]+", match["unit"].strip().casefold())
    if _MULTIPLIERS & set(unit):
        return text
    return match["value"] + (r"\%" if _PERCENT & set(unit) else "")


def _is_unit(unit: str, *, spaced: bool) -> bool:
    parts = [part for part in re.split(r"[ ./-]+", unit) if part]
    if all(part in _ABBREVIATIONS or (spaced and part in _LETTER_UNITS) for part in parts):
        return True
    first = parts[0].casefold()
    return spaced and len(first) > 2 and re.search("[aeiou]", first) is not None and first not in _NO_UNITS


def _unwrapped(text: str) -> str:
    while True:
        inner = _inner(text)
        if inner is None:
            return text
        text = inner.strip()


def _inner(text: str) -> str | None:
    for left, right in _WRAPPERS:
        inner = text[len(left) : -len(right)]
        if inner and text.startswith(left) and text.endswith(right) and left not in inner and right not in inner:
            return inner
    whole = _ALL_TEXT.fullmatch(text)
    # A word stays in its \text{…}, which tells it from a product of variables.
    return whole[1] if whole and re.search(r"\d", whole[1]) else None


def _without_period(text: str) -> str:
    text = text.strip()
    while text and text[-1] in ".,;:" and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text
