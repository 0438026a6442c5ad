"""The small files of a role's checkpoint directory: ``role.json``, and random-number state by rank."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from rl_core.contracts.model import Role
from rl_core.errors import RLError
from safetensors.torch import load_file, save_file

from rl_torch.seeding import rng_state, set_rng_state

logger = logging.getLogger(__name__)

_FACTS = "role.json"


def refuse_other_role(directory: Path, role: Role) -> None:
    """Raise RLError where ``directory`` holds another role, which a save would overwrite."""
    path = directory / _FACTS
    if path.exists() and json.loads(path.read_text())["role"] != role.name:
        raise RLError(f"{directory} already holds another role's checkpoint; save {role.name!r} elsewhere")


def write_facts(directory: Path, role: Role, *, version: int, **facts: Any) -> None:
    """Write ``role.json``: the format's version, the role's name and ``facts``."""
    content = {"format": version, "role": role.name, **facts}
    (directory / _FACTS).write_text(json.dumps(content, indent=1) + "\n")


def read_facts(directory: Path, role: Role, *, backend: str, version: int) -> dict[str, Any]:
    """What :func:`write_facts` wrote.

    Raises:
        RLError: there is no checkpoint, it is another role's, or of another version of the format.
    """
    path = directory / _FACTS
    if not path.exists():
        raise RLError(f"{directory} holds no {backend} checkpoint (no {_FACTS})")
    facts = json.loads(path.read_text())
    if facts["format"] != version:
        raise RLError(
            f"{path}: checkpoint format {facts['format']}, this version of rl-backend-{backend} reads {version}"
        )
    if facts["role"] != role.name:
        raise RLError(f"{directory} holds the role {facts['role']!r}, not {role.name!r}")
    return facts


def save_random_state(directory: Path, rank: int) -> None:
    """Write this rank's random-number state."""
    save_file(rng_state(), _random(directory, rank))


def restore_random_state(directory: Path, rank: int) -> None:
    """Read it again. A rank the checkpoint had no counterpart for keeps its own, with a warning."""
    path = _random(directory, rank)
    if path.exists():
        set_rng_state(load_file(path))
    else:
        logger.warning("%s has no random-number state for rank %d", directory, rank)


def _random(directory: Path, rank: int) -> Path:
    return directory / f"rng-{rank}.safetensors"
