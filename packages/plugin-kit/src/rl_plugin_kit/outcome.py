"""Running a conformance suite without pytest's runner: ``rl plugin check``, and tests of the suites themselves."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from rl_core.discovery.status import describe


@dataclass(frozen=True)
class Outcome:
    """One rule: its sentence, whether it holds, and if not why."""

    rule: str
    status: Literal["ok", "failed", "skipped"]
    detail: str = ""


def rules(suite: type) -> list[str]:
    """Names of a suite's test methods, those of its base classes first, each in order of definition."""
    names = (name for base in reversed(suite.__mro__) for name in vars(base) if name.startswith("test_"))
    return list(dict.fromkeys(names))


def outcomes(suite: type, *, without: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Run the methods of a suite one by one.

    Args:
        suite: a class whose ``test_`` methods take no argument, or pytest's ``tmp_path``.
        without: methods to leave out.
    """
    instance = suite()
    for name in rules(suite):
        if name not in without:
            yield _outcome(name, getattr(instance, name))


def _outcome(name: str, method: Callable[..., None]) -> Outcome:
    rule = name.removeprefix("test_").replace("_", " ")
    try:
        with tempfile.TemporaryDirectory(prefix="rl-conformance-") as folder:
            method(**({"tmp_path": Path(folder)} if "tmp_path" in inspect.signature(method).parameters else {}))
    except AssertionError as error:
        return Outcome(rule, "failed", str(error))
    except pytest.skip.Exception as skip:
        return Outcome(rule, "skipped", str(skip))
    except Exception as error:  # noqa: BLE001 - the plugin boundary: what a plugin raises is a finding
        return Outcome(rule, "failed", describe(error))
    return Outcome(rule, "ok")
