"""Which values are secrets, and keeping them out of what is written down."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

REDACTED = "***"
MASKS = (REDACTED, "**********")
"""Texts that stand for a removed secret (the second is pydantic's ``SecretStr``)."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "special", "image", "new"}
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)(?=@)")
_SHORTEST = 6
"""Values of fewer characters are not searched for in texts: they would be found everywhere."""
_EXPRESSION = re.compile(r"(?<!\$)\$\{[^${}]*\}")


def is_secret(key: str) -> bool:
    """Whether a key (or an environment variable) by this name holds a secret.

    True for names with the word ``secret``, ``password`` or ``api_key``, and for those that end in ``token``.
    A tokenizer's ``pad_token`` and counts such as ``max_new_tokens`` are none.
    """
    words = [word.lower() for word in _WORDS.findall(key)]
    if not words:
        return False
    joined = "_".join(words)
    if re.search(r"(^|_)(secrets?|passwords?|passwd|api_?keys?)(_|$)", joined):
        return True
    return words[-1] == "token" and (len(words) == 1 or words[-2] not in _TOKENS_OF_TEXT)


def redact(document: Any, *, secret: bool = False) -> Any:
    """A copy of plain data in which the text under secret keys (:func:`is_secret`) is ``"***"``.

    So are passwords in addresses, ``scheme://user:password@host``. ``${env:VAR}`` stays, because it names the
    secret without holding it.
    """
    if isinstance(document, Mapping):
        return {key: redact(value, secret=secret or is_secret(str(key))) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [redact(value, secret=secret) for value in document]
    if secret and isinstance(document, str) and document and not _EXPRESSION.search(document):
        return REDACTED
    return hide_url_passwords(document) if isinstance(document, str) else document


def hide_url_passwords(text: str) -> str:
    """``text`` with ``***`` for the passwords in addresses; ``${env:VAR}`` stays."""

    def hide(found: re.Match[str]) -> str:
        return found[0] if "${" in found[0] else f"{found[1]}:{REDACTED}"

    return _URL_PASSWORD.sub(hide, text)


def secret_values(document: Any, *, secret: bool = False) -> Iterator[str]:
    """The texts under secret keys in plain data, such as ``model_dump()`` of a config, ``SecretStr`` included."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from secret_values(value, secret=secret or is_secret(str(key)))
    elif isinstance(document, list | tuple):
        for value in document:
            yield from secret_values(value, secret=secret)
    elif hasattr(document, "get_secret_value"):
        yield str(document.get_secret_value())
    elif secret and isinstance(document, str):
        yield document


def hide_secrets(text: str, more: Iterable[str] = ()) -> str:
    """``text`` with ``***`` for every secret in the environment, for ``more``, and for passwords in addresses."""
    found = {value for name, value in os.environ.items() if is_secret(name)} | set(more)
    for value in sorted((v for v in found if len(v) >= _SHORTEST and v not in MASKS), key=len, reverse=True):
        text = text.replace(value, REDACTED)
    return hide_url_passwords(text)


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without the secrets of the environment and of a config."""

    def __init__(self, fmt: str, datefmt: str | None = None, *, secrets: Iterable[str] = ()) -> None:
        super().__init__(fmt, datefmt)
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().format(record), self._secrets)
