"""``${…}`` in config values.

- ``${run.seed}``: the value of another key of the same stage (a list index is a number: ``${rewards.0.weight}``)
- ``${env:VAR}``, ``${env:VAR:default}``: an environment variable, as text
- ``${secret:NAME}``: a secret from a file, a command or the keyring (:mod:`rl_core.config.secret_sources`)
- ``${stages.sft.export}``, ``${stages.sft.directory}``: absolute folder of an earlier stage
- ``${now}``: when the check began, as ``20260131-142501``; a name that no earlier run has
- ``$${`` is a literal ``${``
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from rl_secrets.names import holds_secret, is_secret_variable, looks_like_credential
from rl_secrets.patterns import secret_spans
from rl_secrets.redaction import is_secret, remember_secrets
from rl_secrets.sources import SecretUnavailable

from rl_core.config.document import MAX_VALUES, BrokenText, Node, children, plain
from rl_core.config.findings import Findings, Path, dotted
from rl_core.config.secret_sources import NAME, SecretSource, find_secret
from rl_core.config.suggest import closest, did_you_mean

MAX_TEXT = 200_000

_TOKEN = re.compile(r"\$\$\{|\$\{([^${}]*)\}|\$\{")
_DIRECTORY = "${run.directory}"
"""Folders inside the run directory stay expressions in the resolved config, so that a run may be moved."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SOURCES: Path = ("run", "secrets")

SecretsFound = dict[tuple[str, SecretSource | None, str], str | int | float | SecretUnavailable]
"""Secrets, or why there is none, by name, source and folder of the config."""


def escape(text: str) -> str:
    """``text`` such that interpolation gives it back unchanged."""
    return text.replace("${", "$${")


class Interpolator:
    """Resolves the interpolations of one stage.

    Args:
        root: the stage's merged sections.
        defaults: plain values of ``section.key`` that hold where the config does not give them.
        folders: ``stage name → {"export": …, "directory": …}`` of the stages before this one.
        stage_names: names of all stages, to explain a reference to a later one.
        secrets: what was found so far: a command is run once for all stages.
    """

    def __init__(
        self,
        root: Node,
        *,
        defaults: Mapping[str, Any],
        folders: Mapping[str, Mapping[str, str]],
        stage_names: tuple[str, ...] = (),
        secrets: SecretsFound | None = None,
    ) -> None:
        self.root = root
        self.defaults = defaults
        self.folders = folders
        self.stage_names = stage_names
        self._secrets: SecretsFound = {} if secrets is None else secrets
        self._done: dict[Path, tuple[Node, Findings]] = {}
        self._active: list[Path] = []
        self._copied = 0

    def resolve(self, path: Path) -> tuple[Node, Findings]:
        """The value at ``path`` (which exists) without interpolations, and what is wrong with it."""
        if path in self._done:
            return self._done[path]
        node = self._at(path)
        if node is None:
            raise KeyError(path)
        findings = Findings()
        self._active.append(path)
        resolved = self._resolve(node, path, findings)
        self._active.pop()
        self._done[path] = resolved, findings
        return resolved, findings

    def _at(self, path: Path) -> Node | None:
        node: Node | None = self.root
        for part in path:
            node = node.get(part) if node else None
        return node

    def _resolve(self, node: Node, path: Path, findings: Findings) -> Node:
        if isinstance(node.value, dict):
            return replace(node, value={key: self._child((*path, key), findings) for key in node.value})
        if isinstance(node.value, list):
            return replace(node, value=[self._child((*path, i), findings) for i in range(len(node.value))])
        if isinstance(node.value, str) and "${" in node.value:
            return self._text(node, path, findings)
        return node

    def _child(self, path: Path, findings: Findings) -> Node:
        node, found = self.resolve(path)
        findings.extend(found)
        return node

    def _text(self, node: Node, path: Path, findings: Findings) -> Node:
        text = node.value
        whole = _TOKEN.fullmatch(text)
        if whole and whole.group(1) is not None and not whole.group(1).startswith(("env:", "secret:")):
            target = self._reference(whole.group(1).strip(), node, findings)
            if target is None or not self._fits(target, node, findings):
                return replace(node, value=BrokenText(text))
            return replace(target, where=node.where, path=node.path)
        parts, end = [], 0
        for match in _TOKEN.finditer(text):
            parts += [replace(node, value=text[end : match.start()]), self._part(match, path, node, findings)]
            end = match.end()
        parts.append(replace(node, value=text[end:]))
        if None in parts:
            return replace(node, value=BrokenText(text))
        known = [part for part in parts if part is not None]
        if whole and known[1].secret and not isinstance(known[1].value, str):
            return known[1]  # a number that was typed as one
        value = "".join(str(part.value) for part in known)
        if len(value) > MAX_TEXT:
            findings.add(node.where, node.path, f"the text has more than {MAX_TEXT} characters after interpolation")
            return replace(node, value=BrokenText(text))
        kept = any(part.expression for part in known)
        expression = "".join(part.expression or escape(part.value) for part in known) if kept else ""
        return replace(node, value=value, expression=expression, secret=any(part.secret for part in known))

    def _part(self, match: re.Match[str], path: Path, node: Node, findings: Findings) -> Node | None:
        """The text that replaces one match, or None after reporting why there is none."""
        body = match.group(1)
        if match.group(0) == "$${":
            return replace(node, value="${")
        if body is None:
            findings.add(
                node.where, node.path, "'${' without a closing '}'", fix="write '$${' for the two characters themselves"
            )
            return None
        if body.startswith("env:"):
            return self._from_environment(match.group(0), body[len("env:") :], path, node, findings)
        if body.startswith("secret:"):
            value = self._secret(body[len("secret:") :].strip(), node, findings)
            return None if value is None else replace(node, value=value, expression=match.group(0), secret=True)
        target = self._reference(body.strip(), node, findings)
        if target is None:
            return None
        if isinstance(target.value, dict | list):
            findings.add(node.where, node.path, f"'${{{body}}}' is a section or a list and cannot be part of a text")
            return None
        if isinstance(target.value, bool) or target.value is None:
            return replace(target, value={True: "true", False: "false", None: "null"}[target.value])
        return replace(target, value=str(target.value))

    def _from_environment(self, text: str, body: str, path: Path, node: Node, findings: Findings) -> Node | None:
        """A variable's value, which is secret where a name says so (the variable's, the key's) or it looks like it."""
        name, _, default = body.partition(":")
        value = self._environment(body, node, findings)
        if value is None:
            return None
        keys = [str(part) for part in path if is_secret(str(part))] if path[:2] != _SOURCES else []
        names = [name] * is_secret_variable(name) + keys

        def is_one(value: str) -> bool:
            return (
                any(holds_secret(one, value) for one in names)
                or looks_like_credential(value)
                or bool(secret_spans(value))
            )

        secret = is_one(value)
        if secret:
            remember_secrets([value, *(value[start:end] for start, end in secret_spans(value))])
        if default and is_one(default):  # it is typed into the config, so it is treated as what is typed
            text = f"${{env:{name}}}" if name in os.environ else ""
        return replace(node, value=value, expression=text, secret=secret and bool(text))

    def _secret(self, name: str, node: Node, findings: Findings) -> str | int | float | None:
        if not NAME.fullmatch(name):
            findings.add(node.where, node.path, f"{name!r} is not the name of a secret", fix="write ${secret:NAME}")
            return None
        path = (*_SOURCES, name)
        source = None
        if self._at(path) is not None:
            described, problems = self._follow(path, node)
            findings.extend(problems)
            try:
                source = SecretSource.model_validate(plain(described))
            except ValidationError:  # reported where it is
                return None
        found = self._secrets.get((name, source, node.base))
        if found is None:
            try:
                found = find_secret(name, source, folder=node.base)
            except SecretUnavailable as error:
                found = error
            self._secrets[name, source, node.base] = found
        if isinstance(found, SecretUnavailable):
            findings.add(node.where, node.path, found.message, fix=found.fix)
            return None
        remember_secrets([str(found)])
        return found

    def _environment(self, body: str, node: Node, findings: Findings) -> str | None:
        name, colon, default = body.partition(":")
        if not _VARIABLE.fullmatch(name):
            findings.add(
                node.where, node.path, f"{name!r} is not the name of an environment variable", fix="write ${env:NAME}"
            )
            return None
        if name in os.environ:
            return os.environ[name]
        if colon:
            return default
        near = closest(name, os.environ)
        hint = f"did you mean {near!r}? Otherwise " if near else ""
        findings.add(
            node.where,
            node.path,
            f"the environment variable {name!r} is not set",
            fix=f"{hint}type: export {name}=…, or write a default: ${{env:{name}:…}}",
        )
        return None

    def _reference(self, body: str, node: Node, findings: Findings) -> Node | None:
        keys = body.split(".")
        if keys[0] == "stages":
            return self._stage_folder(keys, body, node, findings)
        path: Path = ()
        current, followed = self.root, False
        for index, key in enumerate(keys):
            part: str | int = int(key) if isinstance(current.value, list) and key.isdecimal() else key
            child = current.get(part)
            if child is None:
                return self._default(keys, index, current, node, findings)
            path, current = (*path, part), child
            if not followed and (index == len(keys) - 1 or isinstance(current.value, str)):
                # A key on the way may itself be an interpolation that stands for a section.
                current, problems = self._follow(path, node)
                findings.extend(problems)
                followed = True
        if isinstance(current.value, BrokenText):
            return None
        return replace(current, expression=_DIRECTORY) if path == ("run", "directory") else current

    def _follow(self, path: Path, node: Node) -> tuple[Node, Findings]:
        if path not in self._active:
            return self.resolve(path)
        waiting = self._active[self._active.index(path) :]
        circle = [dotted(p) for p in waiting if isinstance(self._text_at(p), str)]
        findings = Findings()
        findings.add(
            node.where,
            node.path,
            f"interpolation goes in a circle: {' → '.join([*circle, dotted(path)])}",
            fix="give one of them a value of its own",
        )
        return replace(node, value=BrokenText("")), findings

    def _text_at(self, path: Path) -> Any:
        found = self._at(path)
        return found.value if found else None

    def _default(self, keys: list[str], index: int, parent: Node, node: Node, findings: Findings) -> Node | None:
        key = ".".join(keys)
        if key in self.defaults:
            kept = _DIRECTORY if key == "run.directory" else ""
            return replace(node, value=self.defaults[key], expression=kept)
        names = [str(i) for i in range(len(children(parent)))]
        if isinstance(parent.value, dict):
            names = list(parent.value)
        if index == 1:
            prefix = f"{keys[0]}."
            names += [known.removeprefix(prefix) for known in self.defaults if known.startswith(prefix)]
        near = closest(keys[index], names)
        options = [".".join([*keys[:index], name]) for name in dict.fromkeys(names)]
        fix = f"there are: {', '.join(options)}" if options else ""
        if near is not None:
            fix = f"did you mean {'.'.join([*keys[:index], near, *keys[index + 1 :]])!r}?"
        findings.add(
            node.where,
            node.path,
            f"'${{{key}}}' refers to {key!r}, which the config does not have",
            fix=fix,
        )
        return None

    def _stage_folder(self, keys: list[str], body: str, node: Node, findings: Findings) -> Node | None:
        if len(keys) == 3 and keys[1] in self.folders and keys[2] in self.folders[keys[1]]:
            return replace(node, value=self.folders[keys[1]][keys[2]], expression=f"${{{body}}}")
        earlier = [f"stages.{name}.export" for name in self.folders]
        if len(keys) > 1 and keys[1] in self.stage_names and keys[1] not in self.folders:
            message = f"'${{{body}}}' refers to a stage that has not run yet"
            fix = did_you_mean(body, earlier, listing="earlier stages") or "the first stage has none before it"
        elif not self.stage_names:
            message, fix = f"'${{{body}}}' refers to a stage, but the config has no 'stages:'", ""
        else:
            message = f"'${{{body}}}' is not a folder of an earlier stage"
            fix = did_you_mean(body, earlier, listing="earlier stages") or "the first stage has none before it"
        findings.add(node.where, node.path, message, fix=fix)
        return None

    def _fits(self, target: Node, node: Node, findings: Findings) -> bool:
        if isinstance(target.value, dict | list):
            self._copied += sum(1 for _ in target.walk())
            if self._copied > MAX_VALUES:
                findings.add(node.where, node.path, f"interpolation makes more than {MAX_VALUES} values")
                return False
        return True
