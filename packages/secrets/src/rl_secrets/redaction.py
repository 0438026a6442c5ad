"""Keeping secrets out of what is written down: the one place where they are masked.

Two things are hidden: values that are known to be secret (from ``${secret:NAME}``, from ``${env:NAME}``, typed into a
config, or in an environment variable with a secret's name), in every form in which they are usually written, and what
a text gives away by its form (:mod:`rl_secrets.patterns`).
"""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any
from urllib.parse import quote, quote_plus, unquote

from rl_secrets.names import holds_secret, is_path, is_secret, is_secret_variable
from rl_secrets.patterns import EXPRESSION, Span, merged, secret_spans

__all__ = [
    "MASKS",
    "REDACTED",
    "SHORTEST",
    "RedactingFormatter",
    "copy_masked",
    "forget_secrets",
    "hide_known",
    "hide_patterns",
    "hide_secrets",
    "is_secret",
    "known_secrets",
    "known_spans",
    "mask_known",
    "mask_names",
    "mask_streams",
    "masked_error",
    "named",
    "redact",
    "remember_secrets",
    "secret_values",
]

Path = tuple[str | int, ...]
"""Keys and list indices from the top of a document."""

REDACTED = "***"
MASKS = (REDACTED, "**********")
"""Texts that stand for a removed secret (the second is pydantic's ``SecretStr``)."""

SHORTEST = 6
"""Values of fewer characters are not searched for in texts: they would be found everywhere."""
_SHORTEST_LINE = 16
_SHORTEST_BASE64 = 8
_MOST_PASSES = 1000

_SHORTEST_PIECE = 10
"""Of a secret that was cut: fewer characters of it are not searched for."""
_BORDER = r"[ \t]*[│┃|]?[ \t]*"
_CUT_AFTER = re.compile(rf"…|\.\.|{_BORDER}(?:\r?\n|\Z)")
_CUT_BEFORE = re.compile(rf"(?:…|\.\.|\A{_BORDER}|\n{_BORDER})\Z")
"""What stands where programs cut a text (``…``, ``...`` in the middle of ``repr``), or break a line."""
_LONGEST_BORDER = 40

_WORDS = frozenset(("default", "disabled", "enabled", "example", "localhost", "password", "public", "secret"))
"""Values of variables that are no secrets, whatever the variable is called."""

_known: set[str] = set()
"""Of this process. Nothing takes a value out but :func:`forget_secrets`: an error may show it at any later time."""


def remember_secrets(values: Iterable[str]) -> None:
    """Have ``values`` masked in everything that this process writes from now on."""
    _known.update(value for value in values if len(value) >= SHORTEST and value not in MASKS)


def forget_secrets() -> None:
    """Begin anew, as for another command in the same process."""
    _known.clear()


def known_secrets() -> frozenset[str]:
    """What :func:`remember_secrets` was given, for another process of the run."""
    return frozenset(_known)


def hide_secrets(text: str, more: Iterable[str] = ()) -> str:
    """``text`` with ``***`` for every known secret, for ``more``, and for what looks like one (tokens in addresses…).

    ``${env:VAR}`` stays.
    """
    return hide_patterns(hide_known(text, more))


def hide_known(text: str, more: Iterable[str] = ()) -> str:
    """``text`` with ``***`` for known secrets only: a text without one is returned as it is."""
    return _hidden(text, _values(more))


def _hidden(text: str, values: Iterable[str]) -> str:
    for _ in range(_MOST_PASSES):  # what stands around a mask may together be a secret again; each pass shortens it
        spans = known_spans(text, values) or merged(_pieces(text, values))
        if not spans:
            return text
        text = _masked(text, spans)
    return REDACTED


def hide_patterns(text: str) -> str:
    """``text`` with ``***`` for what its form gives away as a secret."""
    spans = secret_spans(text)
    return _masked(text, spans) if spans else text


def known_spans(text: str, values: Iterable[str] | None = None) -> list[Span]:
    """Where in ``text`` secrets stand, as they are, quoted, or encoded; ``values``: all that are known by default."""
    found: list[Span] = []
    for value in _values() if values is None else values:
        for form in _forms(value):
            at = text.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = text.find(form, at + 1)
    return merged(found)


def _pieces(text: str, values: Iterable[str]) -> Iterator[Span]:
    """Where ``text`` has the beginning or the end of a secret whose rest was cut off, or is in another line."""
    for value in values:
        for form in _forms(value):
            if len(form) <= _SHORTEST_PIECE:
                continue
            head, tail = form[:_SHORTEST_PIECE], form[-_SHORTEST_PIECE:]
            at = text.find(head)
            while at >= 0:
                end = at + _common(form, text[at : at + len(form)])
                if _CUT_AFTER.match(text, end):
                    yield at, end
                at = text.find(head, at + 1)
            at = text.find(tail)
            while at >= 0:
                end = at + len(tail)
                before = text[max(0, end - len(form)) : end][::-1]
                start = end - _common(form[::-1], before)
                if _CUT_BEFORE.search(text[max(0, start - _LONGEST_BORDER) : start]) or start == 0:
                    yield start, end
                at = text.find(tail, at + 1)


def _common(one: str, other: str) -> int:
    """How many characters they begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _masked(text: str, spans: list[Span]) -> str:
    parts, end = [], 0
    for start, stop in spans:
        parts += [text[end:start], REDACTED]
        end = stop
    return "".join([*parts, text[end:]])


def _values(more: Iterable[str] = ()) -> set[str]:
    ours = {v for name, v in os.environ.items() if is_secret_variable(name) and not is_path(v)}
    ours -= _WORDS
    return {v for v in _known.union(ours, more) if len(v) >= SHORTEST and v not in MASKS}


@functools.lru_cache(1024)
def _forms(value: str) -> tuple[str, ...]:
    """A secret in the ways in which programs write text: quoted, in an address, in base64, line by line."""
    forms = {value, value.strip(), unquote(value)}  # a password in an address may be written with %40 for @
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        forms |= {line for line in lines if len(line) >= _SHORTEST_LINE and not line.startswith("-----")}
    for form in list(forms):
        raw = form.encode("utf-8", errors="surrogatepass")
        forms |= {json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1]}
        forms |= {repr(form)[1:-1], ascii(form)[1:-1], repr(raw)[2:-1]}
        forms |= {quote(raw), quote(raw, safe=""), quote_plus(raw)}
        forms.update(_in_base64(raw))
    return tuple(form for form in forms if len(form) >= SHORTEST)


def _in_base64(raw: bytes) -> Iterator[str]:
    """The characters of base64 that depend on ``raw`` alone, wherever in an encoded text it begins."""
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode()
        first = (offset * 8 + 5) // 6
        last = (offset + len(raw)) * 8 // 6
        if last - first >= _SHORTEST_BASE64:
            yield encoded[first:last]
            yield encoded[first:last].translate({ord("+"): "-", ord("/"): "_"})


def redact(document: Any) -> Any:
    """A copy of plain data without secrets: values under secret names (:func:`is_secret`) and known ones are ``"***"``.

    So are secrets in addresses and the like. ``${env:VAR}`` stays.
    """
    return _redacted(document, "", ())


def _redacted(document: Any, key: str, path: Path) -> Any:
    if isinstance(document, Mapping):
        return {part: _redacted(child, below, (*path, part)) for part, child, below in named(document, key, path)}
    if isinstance(document, list | tuple):
        return [_redacted(child, below, (*path, part)) for part, child, below in named(document, key, path)]
    if key and holds_secret(key, document) and not (isinstance(document, str) and EXPRESSION.search(document)):
        return REDACTED
    return hide_secrets(document) if isinstance(document, str) else document


def mask_known(document: Any) -> Any:
    """A copy of plain data with ``***`` for known secrets in its texts and keys; everything else stays."""
    if isinstance(document, Mapping):
        return {mask_known(key): mask_known(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [mask_known(value) for value in document]
    return hide_known(document) if isinstance(document, str) else document


def mask_names(metrics: dict[str, float]) -> dict[str, float]:
    """``metrics`` with ``***`` for known secrets in their names, which rewards and evaluators choose."""
    names = "\n".join(metrics)  # searched once: this is done in every step
    return metrics if hide_known(names) == names else mask_known(metrics)


def named(document: Any, key: str, path: Path) -> Iterator[tuple[Any, Any, str]]:
    """What a mapping or a list holds: ``(key or index, value, secret name that it stands under or "")``.

    That name is the value's own, that of a mapping above it (``key``), the one next to it (``{name: Authorization,
    value: …}``) or the option before it (``["--api-key", …]``). ``run.secrets`` holds places, no secrets.
    """
    if isinstance(document, Mapping):
        if path[-2:] == ("run", "secrets"):
            yield from ((name, value, "") for name, value in document.items())
            return
        label = document.get("name", document.get("key"))
        for name, value in document.items():
            known = str(label) if name == "value" and isinstance(label, str) and is_secret(label) else key
            yield name, value, str(name) if is_secret(str(name)) else known
    elif isinstance(document, list | tuple):
        for index, value in enumerate(document):
            before = document[index - 1] if index else None
            option = before.lstrip("-") if isinstance(before, str) and before.startswith("-") else ""
            yield index, value, option if option and "=" not in option and is_secret(option) else key


def secret_values(document: Any, *, key: str = "") -> Iterator[str]:
    """The texts under secret names in plain data, such as ``model_dump()`` of a config, ``SecretStr`` included."""
    if isinstance(document, Mapping | list | tuple):
        for _, value, below in named(document, key, ()):
            yield from secret_values(value, key=below)
    elif hasattr(document, "get_secret_value"):
        yield str(document.get_secret_value())
    elif key and holds_secret(key, document):
        yield str(document)


def masked_error(error: BaseException) -> BaseException:
    """``error``, or a copy of it without the secrets in its text and in those of its causes."""
    if not any(hide_secrets(text) != text for one in _causes(error) for text in _texts(one)):
        return error
    try:
        masked = copy.copy(error)
        masked.args = tuple(hide_secrets(one) if isinstance(one, str) else one for one in error.args)
        if hasattr(error, "__notes__"):
            masked.__notes__ = [hide_secrets(str(note)) for note in error.__notes__]
        if any(hide_secrets(text) != text for text in _texts(masked)):
            raise ValueError("its text does not come from its arguments")
    except Exception:  # noqa: BLE001 - the class may be of a plugin and take other arguments
        masked = RuntimeError(hide_secrets(f"{type(error).__name__}: {error}"))
    cause, context = error.__cause__, error.__context__
    masked.__cause__ = masked_error(cause) if cause is not None else None
    masked.__context__ = masked_error(context) if context is not None and context is not cause else masked.__cause__
    masked.__suppress_context__ = error.__suppress_context__
    return masked.with_traceback(error.__traceback__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    left = [error]
    while left:
        if (one := left.pop()) is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]


def _texts(error: BaseException) -> Iterator[str]:
    try:
        yield str(error)
        yield repr(error)  # also of the exceptions in a group
        yield from map(str, getattr(error, "__notes__", ()))
    except Exception:  # noqa: BLE001 - an exception of a plugin's own
        return


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().format(record))


class MaskedText(io.TextIOWrapper):
    """A text stream that writes ``***`` for known secrets, whoever prints them."""

    def write(self, text: str, /) -> int:
        super().write(hide_known(text))
        return len(text)


def mask_streams() -> None:
    """Mask known secrets in what Python code of this process prints to ``sys.stdout`` and ``sys.stderr``."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):  # no stream of the system's
            continue
        stream.flush()
        raw = io.FileIO(number, "w", closefd=False)
        setattr(sys, name, MaskedText(raw, encoding="utf-8", errors="backslashreplace", write_through=True))  # type: ignore[arg-type]


def copy_masked(reader: IO[bytes], writer: IO[bytes]) -> None:
    """Copy the bytes of a log file without known secrets, line by line; like ``shutil.copyfileobj``."""
    values = _values()
    for line in reader:
        text = line.decode("utf-8", errors="surrogateescape")
        writer.write(_hidden(text, values).encode("utf-8", errors="surrogateescape"))
