"""Values of a config as they are written down: expressions stay, and typed secrets become expressions.

``${env:…}`` and ``${secret:…}`` are written as they were given. A secret that was typed into the config becomes
``${secret:typed.KEY}``, and its value is kept apart (:data:`rl_core.config.secret_sources.KEPT_FILE`), so that the run
can be resumed and nothing else that is written holds it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from rl_secrets.names import holds_secret
from rl_secrets.patterns import EXPRESSION, Span, merged, secret_spans
from rl_secrets.redaction import MASKS, REDACTED, known_spans, named, remember_secrets

from rl_core.config.document import BrokenText, Node, plain
from rl_core.config.findings import COMMAND_LINE, Findings, Path, dotted
from rl_core.config.interpolate import escape
from rl_core.config.secret_sources import TYPED

Scalar = str | int | float

_STAYS = re.compile(r"(?<!\$)\$\{(?:env|secret):")
_WRITTEN_OUT = ("name", "directory")
"""Keys of ``run`` that are the run's identity: it stays what it is in another environment."""
_ODD = re.compile(r"[^A-Za-z0-9_.-]")
_SECRET_TYPE = "SecretStr"


class Writer:
    """Validated values → plain data without secrets.

    Attributes:
        typed: the typed secrets by name.
        given: keys → values that came from ``${env:…}`` and are no secrets.
    """

    def __init__(self) -> None:
        self.typed: dict[str, Scalar] = {}
        self.given: dict[str, str] = {}

    def plain(self, value: Any, node: Node | None, path: Path, *, for_reload: bool, key: str = "") -> Any:
        """``value`` with expressions in place of what came from the environment and of secrets.

        Args:
            value: what a model was validated to, as plain data.
            node: what it was made of; None where the config did not give it.
            path: where it is.
            for_reload: it will be read as a config again: folders of the run stay expressions too, texts are escaped.
            key: the secret name that it stands under, or empty.
        """
        if isinstance(value, dict | list | tuple) and not (node is not None and _STAYS.search(node.expression)):
            inner = [
                (
                    part,
                    self.plain(
                        child,
                        node.get(part) if node is not None else None,
                        (*path, str(part) if isinstance(value, dict) else part),
                        for_reload=for_reload,
                        key=below,
                    ),
                )
                for part, child, below in named(value, key, path)
            ]
            return {str(part): one for part, one in inner} if isinstance(value, dict) else [one for _, one in inner]
        return self._leaf(value, node, path, for_reload=for_reload, key=key)

    def _leaf(self, value: Any, node: Node | None, path: Path, *, for_reload: bool, key: str) -> Any:
        if node is not None and isinstance(node.value, BrokenText):  # reported; nothing will be written
            return value
        expression = node.expression if node is not None else ""
        if path[-2:] in (("run", "name"), ("run", "directory")):
            expression = ""
        if node is not None and expression and (for_reload or node.secret or _STAYS.search(expression)):
            if _STAYS.search(expression) and not node.secret:
                self.given[dotted(path)] = str(value)
            return self._without_typed(_from_here(expression, value, node), path, lambda text: text)
        if isinstance(value, str) and value in MASKS and node is not None and isinstance(node.value, str):
            value, key = str(node.value), key or _SECRET_TYPE  # what pydantic shows of a SecretStr
        if key == _SECRET_TYPE or (key and holds_secret(key, value)):
            return self._keep(path, value)
        if isinstance(value, str):
            return self._without_typed(value, path, escape if for_reload else str)
        return value

    def _without_typed(self, text: str, path: Path, literal: Any) -> str:
        parts, end = [], 0
        for start, stop in typed_spans(text):
            parts += [literal(text[end:start]), self._keep(path, text[start:stop])]
            end = stop
        return "".join([*parts, literal(text[end:])])

    def _keep(self, path: Path, value: Scalar) -> str:
        base = TYPED + _ODD.sub("_", dotted(path))[:150]
        name, count = base, 1
        while name in self.typed and self.typed[name] != value:
            count += 1
            name = f"{base}.{count}"
        self.typed[name] = value
        remember_secrets([str(value)])
        return f"${{secret:{name}}}"


def typed_spans(text: str) -> list[Span]:
    """Where secrets stand in a text of a config that may hold ``${…}``."""
    spans = secret_spans(text)
    kept = [found.span() for found in EXPRESSION.finditer(text)]
    spans += [s for s in known_spans(text) if not any(s[0] < end and start < s[1] for start, end in kept)]
    return merged(spans)


def _from_here(expression: str, value: Any, node: Node) -> str:
    """``expression``, which is a path relative to its file, from the root: it will be read from another folder."""
    text = node.value
    relative = isinstance(text, str) and isinstance(value, str) and value != text and not text.startswith(("/", "~"))
    if relative and value.startswith("/") and os.path.normpath(os.path.join(node.base, text)) == value:
        return f"{escape(node.base)}/{expression}"
    return expression


def remember_typed(root: Node) -> None:
    """Have the secrets that are typed into a config masked, from before anything else looks at it."""

    def visit(value: Any, path: Path, key: str) -> None:
        if isinstance(value, Mapping | list):
            for part, child, below in named(value, key, path):
                visit(child, (*path, part), below)
        elif isinstance(value, str):
            if key and holds_secret(key, value) and not EXPRESSION.search(value):
                remember_secrets([str(value)])
            remember_secrets(value[start:end] for start, end in secret_spans(value))
        elif key and holds_secret(key, value):
            remember_secrets([str(value)])

    visit(plain(root), (), "")


def check_typed(node: Node, findings: Findings) -> None:
    """Secrets that an older version removed when it wrote the config, and those that are typed into it."""

    def visit(node: Node, value: Any, key: str) -> None:
        if isinstance(value, Mapping | list):
            for part, child, below in named(value, key, node.path):
                below_node = node.get(part)
                if below_node is not None:
                    visit(below_node, child, below)
            return
        if (
            value is None
            or value == ""
            or isinstance(value, BrokenText)
            or (node.secret and not secret_spans(node.expression))
        ):
            return
        shown = next((part for part in reversed(node.path) if isinstance(part, str)), "")
        fix = f"write {shown}: ${{secret:NAME}} or ${{env:NAME}}"
        text = node.expression or value
        removed = isinstance(text, str) and "://" in text and f":{REDACTED}@" in text
        if removed or (text in MASKS and (key or text != REDACTED)):
            message = "this secret was removed when the config was written down"
            findings.add(node.where, node.path, message, fix=fix)
        elif (key and holds_secret(key, value)) or (isinstance(text, str) and secret_spans(text)):
            message = "a secret is typed into the config; the run directory keeps it in a file that only you may read"
            if node.where.file == COMMAND_LINE:
                message = "a secret is typed on the command line, which others on this machine and in Ray can read"
            findings.add(node.where, node.path, message, fix=fix, severity="warning")

    visit(node, plain(node), "")
