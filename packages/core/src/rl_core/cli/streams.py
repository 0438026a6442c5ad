"""Standard streams that any terminal, and none, can take: nothing that is printed ends a command."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata

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
    what is printed. Characters that a stream's encoding does not have are written in ASCII.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the whole process
    codecs.register_error(_ERRORS, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


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
