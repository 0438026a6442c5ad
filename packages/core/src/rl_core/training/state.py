"""What a checkpoint holds besides the models: ``state.json``, every key of it checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rl_core.errors import RLError
from rl_core.io.files import read_object

STATE = "state.json"
FORMAT = 1
"""Older ones name no format, and are read as 1."""


@dataclass(frozen=True)
class RunState:
    """What a resume needs besides the models.

    Attributes:
        stage, step: the last finished step.
        position: data rows drawn so far.
        weights_version: version of the policy weights.
        algorithm: the algorithm's own state.
        fingerprint: of the training data.
        metrics: of the step.
    """

    stage: str
    step: int
    position: int
    weights_version: int
    fingerprint: str = ""
    algorithm: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)


def read_state(path: Path) -> RunState:
    """The run state inside a checkpoint.

    Raises:
        RLError: it is damaged; names the file, and the key where one is wrong.
    """
    file = path / STATE
    try:
        return _parsed(read_object(file))
    except OSError as error:
        problem = error.strerror or str(error)
    except ValueError as error:
        problem = str(error)
    raise RLError(
        f"{file} is damaged: {problem}\n    restore the checkpoint from a copy, or remove {path} to use the one before"
    )


def _parsed(document: dict[str, Any]) -> RunState:
    version = document.pop("format", FORMAT)
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"format is {version!r}, and this version reads {FORMAT}; another version wrote it")
    unknown = sorted(document.keys() - _CHECKS.keys())
    if unknown:
        raise ValueError(f"the key {unknown[0]!r} is unknown; another version wrote it")
    missing = [name for name in _CHECKS if name not in document and name in _REQUIRED]
    if missing:
        raise ValueError(f"the key {missing[0]!r} is missing")
    for name, value in document.items():
        check, what = _CHECKS[name]
        if not check(value):
            shown = repr(value)
            raise ValueError(f"{name} must be {what}, not {shown if len(shown) < 80 else shown[:80] + '…'}")
    return RunState(**document)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, int | float) for one in value.values())


_COUNT = (_is_count, "a whole number from 0 on")
_TEXT = (lambda value: isinstance(value, str), "text")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "stage": _TEXT,
    "step": _COUNT,
    "position": _COUNT,
    "weights_version": _COUNT,
    "fingerprint": _TEXT,
    "algorithm": (lambda value: isinstance(value, dict), "an object"),
    "metrics": (_is_metrics, "an object of numbers"),
}
_REQUIRED = {one.name for one in fields(RunState)} - {"fingerprint", "algorithm", "metrics"}
