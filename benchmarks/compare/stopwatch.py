"""A plugin that times generation, forward and backward passes in the workers of a run, so that the rest is known.

It is installed for one run: :func:`install` writes a folder with its metadata, which goes on ``PYTHONPATH``. Times are
those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl_core.hookspecs import hookimpl

FILE = "COMPARE_STOPWATCH"
"""Environment variable: the file that a line ``part start end`` is added to for every timed call."""

_METADATA = "Metadata-Version: 2.1\nName: compare-stopwatch\nVersion: 0\n"
_ENTRY_POINT = "[rl_core.plugins]\nstopwatch = compare.stopwatch\n"

_TIMED: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "train": (
        ("forward", "rl_backend_fsdp2.model", "Fsdp2Model.outputs"),
        ("backward", "torch", "Tensor.backward"),
    ),
    "generate": (("generation", "rl_generation_hf.generator", "HfGenerator.generate"),),
}
"""Role of a worker → part, module and function."""


def install(folder: Path) -> dict[str, str]:
    """Write the plugin's metadata below ``folder``; returns the environment variables that a run needs."""
    place = folder / "stopwatch"
    metadata = place / "compare_stopwatch-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(_METADATA)
    (metadata / "entry_points.txt").write_text(_ENTRY_POINT)
    return {"PYTHONPATH": str(place), FILE: str(times_file(folder))}


def times_file(folder: Path) -> Path:
    """Where the times of a run in ``folder`` are."""
    return folder / "stopwatch.txt"


def seconds_by_part(folder: Path, *, begin: float, end: float) -> dict[str, float]:
    """Part → seconds of the calls that began between two moments of the monotonic clock."""
    found: dict[str, float] = {}
    for line in times_file(folder).read_text().splitlines():
        part, start, stop = line.split()
        if begin <= float(start) < end:
            found[part] = found.get(part, 0.0) + float(stop) - float(start)
    return found


@hookimpl
def on_worker_start(role: str, rank: int) -> None:
    """Wrap what is to be timed, once in a process."""
    path = os.environ.get(FILE)
    for part, module, name in _TIMED[role] if path else ():
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for attribute in outer:
            owner = getattr(owner, attribute)
        function = getattr(owner, last)
        if not hasattr(function, "times_of"):
            setattr(owner, last, _timed(function, part, str(path)))


def _timed(function: Callable[..., Any], part: str, path: str) -> Callable[..., Any]:
    file = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the process

    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*arguments, **named)
        finally:
            file.write(f"{part} {start:.6f} {time.monotonic():.6f}\n")

    timed.times_of = part  # type: ignore[attr-defined]
    return timed
