"""A file and everything it draws in → one merged tree of sections per stage.

Order of precedence, lowest first: the files in ``extends`` (later ones win), the file itself, the stage's own
sections, the command line. Mappings are merged key by key and lists are replaced, with two exceptions: a component
section with another ``name`` replaces the section below it, and a model's ``path`` and ``init`` drop one another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rl_secrets.patterns import secret_spans
from rl_secrets.redaction import remember_secrets

from rl_core.component import SECTIONS
from rl_core.config.document import Node, read_document
from rl_core.config.findings import Findings, Path, dotted
from rl_core.config.overrides import Override, apply_overrides, parse_overrides
from rl_core.config.stage import SINGLE_STAGE
from rl_core.config.suggest import did_you_mean

STAGE_SECTIONS = ("model", "run", *SECTIONS)
LISTS = ("rewards", "evaluators", "loggers")
REQUIRED = ("model", "algorithm", "backend", "data", "run")
"""Sections without which there is no run."""

MAX_FILES = 100
MAX_EXTENDS_DEPTH = 20

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class StageTree:
    """The merged sections of one stage, before interpolation.

    Attributes:
        name: the stage's name.
        path: where the stage stands: ``("stages", 1)``, or ``()`` where the config has no stages.
        root: mapping of section name → Node; sections that are null are left out.
        own: the sections that the stage gives itself.
    """

    name: str
    path: Path
    root: Node
    own: frozenset[str] = frozenset()


@dataclass
class Composition:
    """What :func:`compose` made of a file.

    Attributes:
        root: base sections (and the raw ``stages``), None when the file cannot be read.
        stages: one tree per stage, in order.
        multi_stage: whether the config has ``stages:``.
        files: every file read, as shown in messages.
        overrides: the overrides that were understood.
    """

    root: Node | None
    stages: tuple[StageTree, ...] = ()
    multi_stage: bool = False
    files: list[str] = field(default_factory=list)
    overrides: tuple[Override, ...] = ()


def compose(path: str, overrides: Sequence[str], findings: Findings) -> Composition:
    """Read ``path`` and the files it extends, apply the overrides, and merge every stage with the base."""
    parsed = tuple(parse_overrides(overrides, findings))
    files: list[str] = []
    root = _load(path, path, findings, files=files, chain=(), read={})
    if root is None:
        return Composition(None, files=files, overrides=parsed)
    root = apply_overrides(root, parsed, findings)
    _check_keys(root, (*STAGE_SECTIONS, "stages"), findings, of="section")
    given = root.get("stages")
    multi_stage = given is not None and given.value is not None
    composition = Composition(root, multi_stage=multi_stage, files=files, overrides=parsed)
    if given is not None and multi_stage:
        composition.stages = _stages(root, given, findings)
    else:
        composition.stages = (StageTree(SINGLE_STAGE, (), _without_nulls(root)),)
    _check_overrides_reach(composition, findings)
    return composition


def _load(
    file: str,
    shown: str,
    findings: Findings,
    *,
    files: list[str],
    chain: tuple[str, ...],
    read: dict[str, Node | None],
    asked: Node | None = None,
) -> Node | None:
    """The file merged over those it extends; ``read`` holds every file that was, as many may extend the same one."""
    real = _real(file)
    if real in read:
        return read[real]
    if asked is not None and (len(chain) >= MAX_EXTENDS_DEPTH or len(read) >= MAX_FILES):
        deep = len(chain) >= MAX_EXTENDS_DEPTH
        what = f"goes more than {MAX_EXTENDS_DEPTH} files deep" if deep else f"reads more than {MAX_FILES} files"
        findings.add(asked.where, asked.path, f"'extends' {what}")
        return None
    read[real] = None  # it counts from here on
    read[real] = node = _merged(file, shown, findings, files=files, chain=chain, read=read, asked=asked)
    return node


def _merged(
    file: str,
    shown: str,
    findings: Findings,
    *,
    files: list[str],
    chain: tuple[str, ...],
    read: dict[str, Node | None],
    asked: Node | None,
) -> Node | None:
    if shown not in files:
        files.append(shown)
    at, path = (asked.where, asked.path) if asked is not None else (None, ())
    node = read_document(file, findings, shown=shown, at=at, path=path)
    if node is None or (extends := node.get("extends")) is None:
        return node
    own = replace(node, value={key: child for key, child in node.value.items() if key != "extends"})
    wanted = extends.value if isinstance(extends.value, list) else [extends]
    here = (*chain, _real(file))
    below: Node | None = None
    for item in wanted:
        if not isinstance(item.value, str) or not item.value:
            findings.add(item.where, item.path, "'extends' takes a file name or a list of them")
            continue
        remember_secrets(item.value[start:end] for start, end in secret_spans(item.value))
        target = os.path.join(os.path.dirname(file), os.path.expanduser(item.value))
        name = os.path.normpath(os.path.join(os.path.dirname(shown), os.path.expanduser(item.value)))
        if _real(target) in here:
            circle = [os.path.basename(f) for f in here[here.index(_real(target)) :]]
            findings.add(item.where, item.path, f"'extends' goes in a circle: {' → '.join([*circle, circle[0]])}")
            continue
        part = _load(target, name, findings, files=files, chain=here, read=read, asked=item)
        if part is not None:
            below = part if below is None else merge_sections(below, part)
    return own if below is None else merge_sections(below, own)


def _real(file: str) -> str:
    try:
        return os.path.realpath(file)
    except ValueError:  # a NUL character: no file has such a name, which is reported where it is read
        return file


def merge_sections(base: Node, over: Node) -> Node:
    """Two documents (or a base and a stage): section by section, ``over`` winning."""
    merged = dict(base.value)
    for key, section in over.value.items():
        below = merged.get(key)
        merged[key] = section if below is None else _merge_section(key, below, section)
    return replace(over, value=merged)


def _merge_section(key: str, base: Node, over: Node) -> Node:
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    if key in SECTIONS:
        below, name = base.get("name"), over.get("name")
        if below is not None and name is not None and below.value != name.value:
            return over
    if key == "model":
        given = [source for source in ("path", "init") if (node := over.get(source)) is not None and node.value]
        if len(given) == 1:
            other = "init" if given[0] == "path" else "path"
            base = replace(base, value={k: v for k, v in base.value.items() if k != other})
    return _merge(base, over)


def _merge(base: Node, over: Node) -> Node:
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = _merge(merged[key], child) if key in merged else child
    return replace(over, value=merged)


def _without_nulls(root: Node) -> Node:
    kept = {k: v for k, v in root.value.items() if v.value is not None and k in STAGE_SECTIONS}
    return replace(root, value=kept)


def _check_keys(node: Node, known: Sequence[str], findings: Findings, *, of: str) -> None:
    for key, child in node.value.items():
        if key not in known:
            fix = did_you_mean(key, known, listing=f"{of}s")
            if key == "extends":
                fix = "'extends' is read from a file only, at its top"
            findings.add(child.where, child.path, f"unknown {of} {key!r}", fix=fix)


def _stages(root: Node, given: Node, findings: Findings) -> tuple[StageTree, ...]:
    if not isinstance(given.value, list) or not given.value:
        findings.add(
            given.where,
            given.path,
            "must be a list of stages",
            fix="stages: [{name: sft, algorithm: {name: …}}, …]",
        )
        return ()
    base = replace(root, value={k: v for k, v in root.value.items() if k != "stages"})
    trees: list[StageTree] = []
    seen: dict[str, Node] = {}
    for index, item in enumerate(given.value):
        path: Path = ("stages", index)
        if not isinstance(item.value, dict):
            findings.add(item.where, path, "a stage must be a mapping", fix="- name: sft")
            continue
        _check_keys(item, ("name", *STAGE_SECTIONS), findings, of="stage key")
        name = _stage_name(item, path, seen, findings)
        own = frozenset(key for key in item.value if key in STAGE_SECTIONS)
        _check_run_identity(item, findings)
        overlay = replace(item, value={key: item.value[key] for key in item.value if key in STAGE_SECTIONS})
        for key in overlay.value.keys() & base.value.keys():
            _check_shared(key, base.value[key], findings)
        trees.append(StageTree(name, path, _without_nulls(merge_sections(base, overlay)), own))
    return tuple(trees)


def _check_shared(key: str, node: Node, findings: Findings) -> None:
    """A section that stages are merged over has keys, or they would replace it unread."""
    is_reference = isinstance(node.value, str) and "${" in node.value
    if key not in LISTS and node.value is not None and not isinstance(node.value, dict) and not is_reference:
        findings.add(node.where, node.path, "must be a mapping of keys to values", fix=f"remove {key}, or give it keys")


def _stage_name(item: Node, path: Path, seen: dict[str, Node], findings: Findings) -> str:
    node = item.get("name")
    if node is None or node.value is None:
        findings.add(item.where, path, "the stage has no 'name'", fix="name: sft")
        return f"stage{path[1]}"
    if not isinstance(node.value, str) or not _STAGE_NAME.fullmatch(node.value):
        findings.add(
            node.where,
            node.path,
            f"a stage's name has at most 100 letters, digits, '-' and '_', found {node.value!r}"
            if not isinstance(node.value, dict | list)
            else "a stage's name must be text",
            fix="name: sft",
        )
        return f"stage{path[1]}"
    if node.value in seen:
        first = seen[node.value]
        findings.add(node.where, node.path, f"two stages have the name {node.value!r}, the first at {first.where}")
        return f"stage{path[1]}"
    seen[node.value] = node
    return node.value


def _check_run_identity(item: Node, findings: Findings) -> None:
    run = item.get("run")
    for key in ("name", "directory"):
        child = run.get(key) if run is not None else None
        if child is not None:
            findings.add(
                child.where,
                child.path,
                f"'run.{key}' belongs to the whole run, not to a stage",
                fix="move it to the top-level section 'run:'",
            )


def _check_overrides_reach(composition: Composition, findings: Findings) -> None:
    """An override that every stage's own sections hide would silently do nothing."""
    if not composition.multi_stage or findings.failed:
        return
    used = {node.where for tree in composition.stages for node in tree.root.walk()}
    for override in composition.overrides:
        if override.keys[0] != "stages" and override.value.where not in used and override.value.value is not None:
            names = ", ".join(tree.name for tree in composition.stages)
            findings.add(
                override.value.where,
                override.keys,
                "has no effect: every stage has its own value there",
                fix=f"write stages.NAME.{dotted(override.keys)}=…; stages: {names}",
            )
