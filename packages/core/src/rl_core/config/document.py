"""YAML text → plain values that know the line they stand on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from rl_secrets.redaction import hide_secrets

from rl_core.config.findings import Findings, Location, Path
from rl_core.config.paths import SourceText
from rl_core.config.suggest import closest
from rl_core.config.yaml_rules import TAG, YamlLoader, scalar_value

MAX_BYTES = 2**20
MAX_VALUES = 20_000
"""Of one document, and of all that interpolation makes; so that a check takes seconds whatever it is given."""
MAX_DEPTH = 60


class BrokenText(str):
    """Stands for a value that cannot be read or filled in, which was reported; checks pass over it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a config with its origin.

    Attributes:
        value: a mapping of Nodes, a list of Nodes, or a plain scalar.
        where: line of its key (of the value itself for a list item).
        path: its place in the document it was written in.
        base: absolute folder that relative paths in it start from.
        expression: the text to keep instead of the value when the config is written out (``${env:…}``,
            ``${secret:…}``, a folder inside the run directory); empty otherwise.
        secret: whether the value holds a secret that ``expression`` stands for.
    """

    value: Any
    where: Location
    path: Path
    base: str
    expression: str = ""
    secret: bool = False

    def get(self, key: str | int) -> Node | None:
        """The child under ``key``, or None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def walk(self) -> Iterator[Node]:
        """This node and everything below it."""
        yield self
        for child in children(self):
            yield from child.walk()


def children(node: Node) -> list[Node]:
    """The nodes directly below ``node``."""
    if isinstance(node.value, dict):
        return list(node.value.values())
    return list(node.value) if isinstance(node.value, list) else []


def plain(node: Node) -> Any:
    """Plain Python data; strings are :class:`SourceText`, so that path fields can be made absolute."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    if type(node.value) is str:
        return SourceText(node.value, node.base)
    return node.value


def read_document(
    file: str, findings: Findings, *, shown: str | None = None, at: Location | None = None, path: Path = ()
) -> Node | None:
    """Read a YAML file whose top is a mapping; None when it cannot be used, which ``findings`` then explains.

    Args:
        file: path to open.
        shown: how the file is called in messages; ``file`` by default.
        at: where the file was asked for (an ``extends`` line); the file itself by default.
        path: the key that asked for it.
    """
    shown = shown if shown is not None else file
    at = at or Location(shown)
    text = _read_text(file, shown, findings, at=at, path=path)
    if text is None:
        return None
    base = os.path.dirname(os.path.abspath(file))
    node = _parse(text, findings, where=Location(shown, 1), base=base, path=(), command_line=False)
    if node is None:
        return None
    if node.value is None:
        findings.add(Location(shown), (), "the file is empty", fix="write sections such as 'model:' and 'algorithm:'")
        return None
    if not isinstance(node.value, dict):
        found = "a list" if isinstance(node.value, list) else f"{type(node.value).__name__} {node.value!r}"
        findings.add(
            node.where,
            (),
            f"the top of the file must be a mapping of sections, found {found}",
            fix="write sections such as 'model:' and 'algorithm:'",
        )
        return None
    return node


def parse_value(text: str, findings: Findings, *, where: Location, base: str, path: Path) -> Node | None:
    """A value given on the command line, read as YAML; None when it is not YAML."""
    return _parse(text, findings, where=where, base=base, path=path, command_line=True)


def _read_text(file: str, shown: str, findings: Findings, *, at: Location, path: Path) -> str | None:
    try:
        if os.path.isdir(file):
            findings.add(at, path, f"cannot read '{shown}': it is a directory", fix="name a YAML file in it")
            return None
        with open(file, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        findings.add(at, path, f"cannot read '{shown}': there is no such file", fix=_near_file(file, shown))
        return None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        findings.add(at, path, f"cannot read '{shown}': {reason}")
        return None
    if len(raw) > MAX_BYTES:
        findings.add(at, path, f"cannot read '{shown}': a config has at most {MAX_BYTES >> 20} MiB")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        findings.add(
            Location(shown, line),
            (),
            f"the file is not UTF-8 text (byte 0x{raw[error.start]:02x})",
            fix="save it as UTF-8",
        )
        return None


def _near_file(file: str, shown: str) -> str:
    try:
        names = [n for n in os.listdir(os.path.dirname(file) or ".") if n.endswith((".yaml", ".yml"))]
    except (OSError, ValueError):
        return ""
    near = closest(os.path.basename(file), sorted(names))
    return f"did you mean '{os.path.join(os.path.dirname(shown), near)}'?" if near else ""


def _parse(text: str, findings: Findings, *, where: Location, base: str, path: Path, command_line: bool) -> Node | None:
    def fail(line: int, message: str, fix: str = "") -> None:
        at = where if command_line else Location(where.file, line)
        findings.add(at, path, message, fix=fix)

    try:
        loader = _BoundedLoader(text)
        try:
            composed = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        fix = f"put the value in quotes: {_quoted(text)}" if command_line else _SYNTAX_FIX
        fail(mark.line + 1 if mark else 1, f"not valid YAML: {what}", fix)
        return None
    except yaml.reader.ReaderError as error:
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        fail(text.count("\n", 0, error.position) + 1, f"not valid YAML: the character {character} is not allowed")
        return None
    except _TooManyValues as error:
        fail(error.line, f"the document holds more than {MAX_VALUES} values")
        return None
    except RecursionError:
        fail(1, f"nested more than {MAX_DEPTH} levels deep")
        return None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # PyYAML lets a few malformed escapes ("\UFFFFFFFF") and directives through as bare Python errors.
        fail(1, f"not valid YAML: {error}")
        return None
    if composed is None:
        return Node(None, where, path, base)
    return _Builder(findings, where=where, base=base, command_line=command_line).build(composed, path, None)


class _TooManyValues(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _BoundedLoader(YamlLoader):
    """Stops reading where there are too many values, not only after the end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count += 1
        # A key is a node of its own.
        if self._count > 2 * MAX_VALUES:
            raise _TooManyValues(self.line + 1)
        return super().compose_node(parent, index)


_SYNTAX_FIX = "text with ': ', '#' or a leading '*&!%@`{[' needs quotes; indent with spaces"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Builder:
    """PyYAML's nodes → :class:`Node`, reporting everything that is wrong on the way."""

    def __init__(self, findings: Findings, *, where: Location, base: str, command_line: bool) -> None:
        self.findings = findings
        self.where = where
        self.base = base
        self.command_line = command_line
        self.count = 0
        self.open: set[int] = set()

    def line(self, source: yaml.Node) -> Location:
        return self.where if self.command_line else Location(self.where.file, source.start_mark.line + 1)

    def build(self, source: yaml.Node, path: Path, key: Location | None) -> Node:
        where = key or self.line(source)
        self.count += 1
        if self.count == MAX_VALUES:
            self.findings.add(where, path, f"the document holds more than {MAX_VALUES} values")
        if id(source) in self.open:
            self.findings.add(where, path, "an alias refers to the value that contains it")
        elif len(path) > MAX_DEPTH:
            self.findings.add(where, path[:3], f"nested more than {MAX_DEPTH} levels deep")
        elif self.count < MAX_VALUES:
            self.open.add(id(source))
            value = self._value(source, path, where)
            self.open.discard(id(source))
            return Node(value, where, path, self.base)
        return Node(None, where, path, self.base)

    def _value(self, source: yaml.Node, path: Path, where: Location) -> Any:
        if isinstance(source, yaml.MappingNode) and source.tag == TAG + "map":
            return self._mapping(source, path)
        if isinstance(source, yaml.SequenceNode) and source.tag == TAG + "seq":
            return [self.build(item, (*path, index), None) for index, item in enumerate(source.value)]
        if isinstance(source, yaml.ScalarNode):
            try:
                return scalar_value(source.tag.removeprefix(TAG), source.value)
            except (ValueError, OverflowError):
                shown = hide_secrets(source.value)[:40]
                self.findings.add(where, path, f"cannot read {shown!r} as {source.tag.removeprefix(TAG)}")
                return BrokenText()
            except LookupError:
                pass  # an unknown tag, reported below
        tag = source.tag.replace(TAG, "!!")
        self.findings.add(where, path, f"the tag {tag!r} is not allowed", fix="use plain text, numbers, lists and maps")
        return BrokenText()

    def _mapping(self, source: yaml.MappingNode, path: Path) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in source.value:
            at = self.line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.findings.add(at, path, "a key must be text, not a list or a mapping")
                continue
            if key_node.tag == TAG + "merge":
                for key, node in self._merge(value_node, path, at).items():
                    merged.setdefault(key, node)
                continue
            key = key_node.value
            if key in own:
                self.findings.add(
                    at, (*path, key), f"the key is given twice, first at {own[key].where}", fix="remove one of them"
                )
                continue
            own[key] = self.build(value_node, (*path, key), at)
        return {**merged, **own}

    def _merge(self, source: yaml.Node, path: Path, at: Location) -> dict[str, Node]:
        parts = source.value if isinstance(source, yaml.SequenceNode) else [source]
        merged: dict[str, Node] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                self.findings.add(at, (*path, "<<"), "'<<' takes an alias of a mapping, or a list of them")
                continue
            node = self.build(part, path, None)
            for key, child in node.value.items() if isinstance(node.value, dict) else ():
                merged.setdefault(key, child)
        return merged
