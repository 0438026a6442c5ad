"""Standard streams that any terminal, and none, can take: nothing that is printed ends a command."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from typing import Any, TextIO

from rl_secrets.redaction import MaskedText

_ERRORS = "rl.plain"
_PLAIN = {
    **dict(zip("→←⇒…×·•±≤≥≠", ["->", "<-", "=>", "...", "x", "*", "*", "+-", "<=", ">=", "!="], strict=True)),
    **dict.fromkeys("–—‐‑−─━═╌╍┄┅┈┉╴╶╸╺╼╾", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┣┫┳┻╋╔╗╚╝╠╣╦╩╬╭╮╰╯┡┩╇╈╞╡╪", "+"),
    **dict.fromkeys("█▓▒░▉▊▋▌▍▎▏▇▆▅▄▃▂▁■●", "#"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
}


def prepare() -> None:
    """Make ``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` usable, whatever this process was started with.

    A stream that was closed becomes the null device, so that no file that is opened later takes its number and gets
    what is printed. After the reader of a stream has gone (``rl run … | head``), what is printed is dropped: a run goes
    on. Characters that a stream's encoding does not have are written in ASCII.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif name != "stdin" and getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lasting(getattr(sys, name)))
    codecs.register_error(_ERRORS, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


class _PipeSafeFile(io.FileIO):
    """A file that becomes the null device when its reader or its terminal has gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for what libraries and child processes print as well
            os.close(null)
            return super().write(data)


def _lasting(stream: TextIO) -> TextIO:
    """``stream``, an output of this process, over a :class:`_PipeSafeFile` file; known secrets are masked in it."""
    below = getattr(stream, "buffer", None)
    file = getattr(below, "raw", below)  # PYTHONUNBUFFERED: nothing between text and file
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(file, io.FileIO):
        return stream
    stream.flush()
    raw = _PipeSafeFile(stream.fileno(), "w", closefd=False)
    return MaskedText(
        raw if below is file else io.BufferedWriter(raw),  # type: ignore[type-var]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(map(_plain, error.object[error.start : error.end]))
    return text, error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    letters = unicodedata.normalize("NFKD", character).encode("ascii", errors="ignore").decode()
    return letters or ("*" if "\u2800" <= character <= "\u28ff" else "?")  # rich's spinner is made of braille
