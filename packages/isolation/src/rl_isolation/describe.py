"""Values and exceptions of foreign code as short text, whatever their own methods do."""

from __future__ import annotations

import reprlib
from typing import Any

MESSAGE_CHARACTERS = 2000
_VALUE_CHARACTERS = 200


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _VALUE_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)  # type: ignore[misc]
        except ValueError:
            return f"an integer of {x.bit_length():,} bits"


def shown(value: Any) -> str:
    """``repr`` in at most about 200 characters; long texts, lists and numbers are cut before they are written out."""
    try:
        if type(value) is float:
            return repr(value)
        text = _Short().repr(value)
    except Exception as error:  # noqa: BLE001 - a __repr__ can raise anything
        return f"an object of the type {type(value).__name__}, whose __repr__ raises {type(error).__name__}"
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "…"


def message_of(error: BaseException) -> str:
    """``str(error)``, cut where it is long, without control characters."""
    try:
        text = str(error)
    except Exception as raised:  # noqa: BLE001 - a __str__ can raise anything
        return f"(its message cannot be read: __str__ raises {type(raised).__name__})"
    return cut(text)


def cut(text: str) -> str:
    """At most about 2,000 characters of foreign text, without what moves a terminal's cursor."""
    return printable(text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS] + "…")


def printable(text: str) -> str:
    """``text`` with ``�`` for control characters other than line breaks and tabs."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def place_of(error: BaseException) -> str:
    """``file:line`` that the exception comes from; empty where it has no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def one_line(text: str) -> str:
    """Without line breaks and runs of spaces."""
    return " ".join(text.split())
