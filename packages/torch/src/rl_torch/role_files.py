"""Files of a backend next to a role's shards: ``role.json``, random-number states, and errors that all ranks share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rl_core.errors import RLError, StorageError

from rl_torch.seeding import rng_state, set_rng_state
from rl_torch.shards import load_tensors, save_tensors

FACTS = "role.json"


def require_own_directory(directory: Path, role: str) -> None:
    """A directory holds one role.

    Raises:
        RLError: the directory already holds another role.
    """
    facts = directory / FACTS
    if facts.exists() and json.loads(facts.read_text())["role"] != role:
        raise RLError(f"{directory} already holds another role's checkpoint; save {role!r} elsewhere")


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Write ``role.json`` and fsync it.

    Raises:
        StorageError: it cannot be written.
    """
    path = directory / FACTS
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def read_facts(directory: Path, *, backend: str, version: int, role: str) -> dict[str, Any]:
    """The contents written by :func:`write_facts`, with ``format``, ``role`` and ``steps`` checked.

    Raises:
        RLError: it is missing or damaged, of another format, or another role's.
    """
    path = directory / FACTS
    if not path.exists():
        raise RLError(f"{directory} holds no {backend} checkpoint (no {FACTS})")
    try:
        facts = json.loads(path.read_bytes())
        found, steps, saved = facts["format"], int(facts["steps"]), facts["role"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RLError(
            f"{path} is damaged: {type(error).__name__}: {error}\n"
            "    resume from another checkpoint, or restore this one from a copy"
        ) from error
    if found != version:
        raise RLError(f"{path}: checkpoint format {found}, this version of rl-backend-{backend} reads {version}")
    if saved != role:
        raise RLError(f"{directory} holds the role {saved!r}, not {role!r}")
    return {**facts, "steps": steps}


def write_random_state(directory: Path, rank: int) -> None:
    """Write this rank's random-number state. Raises StorageError where that fails."""
    save_tensors(rng_state(), directory / f"rng-{rank}.safetensors")


def read_random_state(directory: Path, rank: int) -> bool:
    """Restore it; False where the checkpoint has none for this rank, which keeps its own then."""
    path = directory / f"rng-{rank}.safetensors"
    if not path.exists():
        return False
    try:
        set_rng_state(load_tensors(path))
    except (KeyError, RuntimeError, TypeError) as error:
        raise RLError(
            f"{path} is damaged: {type(error).__name__}: {error}\n"
            "    resume from another checkpoint, or restore this one from a copy"
        ) from error
    return True


def finish_all(finish: Iterable[Callable[[], None]]) -> None:
    """Call all of ``finish``, each of which waits for a write, and then raise what the first that failed raised."""
    problems = []
    for one in finish:
        try:
            one()
        except StorageError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def write_together(write: Callable[[], None], group: dist.ProcessGroup | None = None) -> None:
    """Call ``write`` on every rank and wait for all: what fails on one is raised on all, and none is left waiting.

    Raises:
        StorageError: some rank could not write.
    """
    problem: str | None = None
    try:
        write()
    except StorageError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot write {error.filename}: {error.strerror}" if error.filename else str(error)
    problems: list[str | None] = [problem]
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        problems *= dist.get_world_size(group)
        dist.all_gather_object(problems, problem, group=group)
    if first := next((p for p in problems if p), None):
        raise StorageError(first)
