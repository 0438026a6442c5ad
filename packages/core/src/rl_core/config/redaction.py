"""Which values are secrets, and keeping them out of what is written down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "***"
MASKS = (REDACTED, "**********")
"""Texts that stand for a removed secret (the second is pydantic's ``SecretStr``)."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "special", "image", "new"}
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

    ``${env:VAR}`` stays, because it names the secret without holding it.
    """
    if isinstance(document, Mapping):
        return {key: redact(value, secret=secret or is_secret(str(key))) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [redact(value, secret=secret) for value in document]
    if secret and isinstance(document, str) and document and not _EXPRESSION.search(document):
        return REDACTED
    return document
