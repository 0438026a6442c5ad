"""``section.key=value`` from the command line.

An override sets the key in the base sections, and again in every stage that sets the same key itself, so that it
wins everywhere. Where the base does not have the section at all, it goes to the stages that set the key.
``stages.NAME.section.key=value`` (or the stage's index) addresses one stage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rl_secrets.patterns import EXPRESSION
from rl_secrets.redaction import is_secret, remember_secrets

from rl_core.component import SECTIONS
from rl_core.config.document import Node, parse_value
from rl_core.config.findings import COMMAND_LINE, Findings, Location, Path, dotted
from rl_core.config.suggest import did_you_mean

_KEY = re.compile(r"[^\s.=]+(\.[^\s.=]+)*")


@dataclass(frozen=True)
class Override:
    """One parsed override: the keys as typed, and the value with its position."""

    keys: tuple[str, ...]
    value: Node


def parse_overrides(texts: Sequence[str], findings: Findings) -> list[Override]:
    """Read every ``key=value``; what is malformed is reported and left out."""
    overrides = []
    base = os.getcwd()
    for index, text in enumerate(texts):
        where = Location(COMMAND_LINE, index)
        key, equals, value = text.partition("=")
        if not equals or not _KEY.fullmatch(key):
            findings.add(where, (), f"cannot read the override {text!r}", fix="write it as algorithm.group_size=16")
            continue
        keys = tuple(key.split("."))
        if any(is_secret(name) for name in keys) and not EXPRESSION.search(value):
            remember_secrets([value, value.strip("\"'")])  # it may be no YAML, and stand in a message that says so
        node = parse_value(value, findings, where=where, base=base, path=keys)
        if node is not None:
            overrides.append(Override(keys, node))
    return overrides


def apply_overrides(root: Node, overrides: Sequence[Override], findings: Findings) -> Node:
    """``root`` with the overrides applied in order; one that does not fit the config is reported."""
    for override in overrides:
        root = _apply(root, override, findings)
    return root


def _apply(root: Node, override: Override, findings: Findings) -> Node:
    if override.keys[0] == "stages" and len(override.keys) > 1:
        return _assign(root, _stage_keys(root, override, findings), override, findings)
    stages = root.get("stages")
    count = len(stages.value) if stages is not None and isinstance(stages.value, list) else 0
    overlays = [index for index in range(count) if _has(root, ("stages", str(index), *override.keys))]
    section = root.get(override.keys[0])
    if not overlays or section is not None or override.keys[0] not in SECTIONS:
        root = _assign(root, override.keys, override, findings)
    for index in overlays:
        root = _assign(root, ("stages", str(index), *override.keys), override, findings)
    return root


def _stage_keys(root: Node, override: Override, findings: Findings) -> tuple[str, ...] | None:
    stages = root.get("stages")
    items = stages.value if stages is not None and isinstance(stages.value, list) else []
    names = [str(name.value) for item in items if (name := item.get("name")) is not None]
    wanted = override.keys[1]
    for index, item in enumerate(items):
        name = item.get("name")
        if name is not None and str(name.value) == wanted:
            return ("stages", str(index), *override.keys[2:])
    if wanted.isdecimal() and int(wanted) < len(items):
        return override.keys
    message = f"there is no stage {wanted!r}" if items else "the config has no 'stages:'"
    findings.add(override.value.where, override.keys, message, fix=did_you_mean(wanted, names, listing="stages"))
    return None


def _has(root: Node, keys: tuple[str, ...]) -> bool:
    node: Node | None = root
    for key in keys:
        if node is None:
            return False
        node = node.get(int(key) if isinstance(node.value, list) and key.isdecimal() else key)
    return node is not None


def _assign(root: Node, keys: tuple[str, ...] | None, override: Override, findings: Findings) -> Node:
    if keys is None:
        return root
    try:
        return _assigned(root, keys, (), override.value)
    except ValueError as error:
        findings.add(override.value.where, override.keys, str(error))
        return root


def _assigned(node: Node, keys: tuple[str, ...], path: Path, value: Node) -> Node:
    """``node`` with ``value`` at ``keys``; ``path`` is where ``node`` stands."""
    if not keys:
        return _moved(value, path)
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        if not key.isdecimal() or int(key) >= len(node.value):
            size = len(node.value)
            raise ValueError(f"{dotted(path)!r} is a list of {size}; {key!r} is none of its indices")
        items = list(node.value)
        items[int(key)] = _assigned(items[int(key)], rest, (*path, int(key)), value)
        return replace(node, value=items)
    if node.value is None:
        node = Node({}, value.where, path, value.base)
    if not isinstance(node.value, dict):
        raise ValueError(f"{dotted(path)!r} is {node.value!r}, which has no keys")
    child = node.value.get(key) or Node(None, value.where, (*path, key), value.base)
    return replace(node, value={**node.value, key: _assigned(child, rest, (*path, key), value)})


def _moved(node: Node, path: Path) -> Node:
    """``node`` and everything below it, standing at ``path``."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _moved(child, (*path, key)) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child, (*path, index)) for index, child in enumerate(value)]
    return replace(node, value=value, path=path)
