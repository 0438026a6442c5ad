"""Secrets that a text gives away by their form: in addresses, headers, assignments and key blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rl_secrets.names import KNOWN_FORM, is_secret, looks_like_credential

Span = tuple[int, int]
"""Start and end of a part of a text."""

EXPRESSION = re.compile(r"(?<!\$)\$\{[^${}]*\}")
"""``${env:NAME}`` and the like: they name a secret without holding it."""

_NOTHING = "\0"
_USERINFO = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,30}):/{1,3}([^\s/?#\"'<>|]*)@(?=[^\s@])")
_ALONE = frozenset(("http", "https", "ws", "wss", "ray", "grpc", "grpcs", "git+https", "git+http"))
"""Schemes of addresses in which a user without a password is a token, not the name of an account."""
_IN_QUERY = re.compile(r"[?&;#]([\w.%\[\]-]+)=([^&;\s\"'<>#,)]+)")
_QUERY_NAMES = frozenset(["key", "sig", "signature", "auth", "x-amz-signature", "x-amz-credential", "awsaccesskeyid"])
_HEADER = re.compile(
    r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token|digest|negotiate|apikey)\s+)?"
    r"([^\s\"',;\\]{6,})"
)
_BEARER = re.compile(r"(?i)\b(?:bearer|basic)\s+([A-Za-z0-9._~+/=-]{8,})")
_NAME = r"(?<![\w.?&;#-])-{0,2}([A-Za-z_][\w.-]*)"
_ASSIGNED = re.compile(_NAME + r"\s?=\s?(?:\"([^\"\n]+)\"|'([^'\n]+)'|(?<==)([^\s,;&\"'()\[\]{}<>]+))")
_QUOTED = re.compile(r"[\"']([\w.-]+)[\"']\s*:\s*(?:\"((?:[^\"\\\n]|\\.)+)\"|'((?:[^'\\\n]|\\.)+)')")
_LINE = re.compile(r"(?m)^[ \t>-]*([\w.-]+):[ \t]+[\"']?(\S+?)[\"']?[ \t]*$")
_OPTION = re.compile(r"(?<!\S)--?([A-Za-z][\w-]*)[ \t]+([^\s\"'-][^\s\"']{5,})")
_KEY_BLOCK = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(.*?)(?:-----END|\Z)", re.DOTALL)
_HOOK = re.compile(r"https://(?:hooks\.slack\.com/\w+|discord(?:app)?\.com/api/webhooks)/([\w/-]+)")
_NO_VALUE = re.compile(r"(?i)none|null|true|false|str|int|[-+.\d]+|\W+|\*{3,}.*")


def secret_spans(text: str) -> list[Span]:
    """The parts of ``text`` that are secrets by their form, in order and apart from each other.

    ``${…}`` is never a part of one.
    """
    if not text:
        return []
    blank = EXPRESSION.sub(lambda found: _NOTHING * len(found[0]), text) if "${" in text else text
    return merged(piece for span in _found(blank) for piece in _without_expressions(blank, span))


def merged(spans: Iterator[Span] | list[Span]) -> list[Span]:
    """``spans`` in order; those that overlap or touch become one."""
    whole: list[Span] = []
    for start, end in sorted(spans):
        if whole and start <= whole[-1][1]:
            whole[-1] = whole[-1][0], max(end, whole[-1][1])
        else:
            whole.append((start, end))
    return whole


def _found(text: str) -> Iterator[Span]:
    yield from (found.span() for found in KNOWN_FORM.finditer(text))
    if ":/" in text:  # os.path.normpath leaves one slash
        for found in _USERINFO.finditer(text):
            yield from _userinfo(found)
        yield from (found.span(1) for found in _HOOK.finditer(text))
    if "-----BEGIN" in text:
        yield from (found.span(1) for found in _KEY_BLOCK.finditer(text))
    if "=" in text:
        for found in _IN_QUERY.finditer(text):
            if is_secret(found[1]) or found[1].lower() in _QUERY_NAMES:
                yield found.span(2)
        for found in _ASSIGNED.finditer(text):
            group = next(i for i in (2, 3, 4) if found[i])
            if is_secret(found[1]) and _is_value(found[group]):
                yield found.span(group)
    if ":" in text:
        for found in _QUOTED.finditer(text):
            group = 2 if found[2] else 3
            if is_secret(found[1]) and _is_value(found[group]):
                yield found.span(group)
        for found in _LINE.finditer(text):
            if is_secret(found[1]) and looks_like_credential(found[2]):
                yield found.span(2)
    for pattern in (_HEADER, _BEARER):
        yield from (found.span(1) for found in pattern.finditer(text) if _is_random(found[1]))
    if "-" in text:
        for found in _OPTION.finditer(text):
            if is_secret(found[1]) and _is_random(found[2]):
                yield found.span(2)


def _userinfo(found: re.Match[str]) -> Iterator[Span]:
    """The password; the user too where that is the token (``https://TOKEN@host``, ``https://TOKEN:@host``)."""
    start, end = found.span(2)
    user, colon, password = found[2].partition(":")
    if password:
        yield start + len(user) + 1, end
    if user and (not password or password == "x-oauth-basic") and (colon or found[1].lower() in _ALONE):
        yield start, start + len(user)


def _is_value(text: str) -> bool:
    """Not ``None``, a number, or the name of a variable, as in ``api_key=config.api_key``."""
    return len(text) >= 4 and not _NO_VALUE.fullmatch(text) and not is_secret(text.rpartition(".")[2])


def _is_random(text: str) -> bool:
    """No word: ``dXNlcjpw``, ``abc123``, or very long."""
    has_both = any(c.isdigit() for c in text) and any(c.isalpha() for c in text)
    return has_both or len(text) >= 24 or re.search(r"[a-z][A-Z]", text) is not None


def _without_expressions(text: str, span: Span) -> Iterator[Span]:
    start = span[0]
    for part in re.split(f"({_NOTHING}+)", text[slice(*span)]):
        if part.strip(_NOTHING):
            yield start, start + len(part)
        start += len(part)
