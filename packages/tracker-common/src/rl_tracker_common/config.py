"""Configs as trackers show them: one value a name, without secrets, and what changed from one start to the next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rl_secrets.redaction import redact

Scalar = str | int | float | bool | None


def flat_config(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """``{"algorithm": {"beta": 0.1}}`` → ``{"algorithm.beta": 0.1}``, secrets as ``***``; items of lists by index."""
    return dict(_leaves(redact(config), ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in value):
        for index, below in enumerate(value):
            yield from _leaves(below, f"{name}.{index}")
    elif isinstance(value, list | tuple):
        yield name, json.dumps(list(value), ensure_ascii=False, default=str)
    else:
        yield name, value if value is None or isinstance(value, str | int | float | bool) else str(value)


@dataclass(frozen=True)
class Change:
    """A value of a config that is another than at the last start; None where there is none."""

    name: str
    before: Scalar
    after: Scalar

    def __str__(self) -> str:
        return f"{self.before} → {self.after}"


def config_changes(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> list[Change]:
    """By name; values that were masked in both are taken for equal."""
    names = sorted({*before, *after})
    return [Change(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]
