"""Checkpoints: complete or absent.

A checkpoint is written under a temporary name, every file is fsynced, the manifest with sizes and
checksums comes last, and one rename makes it visible. Readers take the newest folder whose
manifest matches what is on disk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rl_core.errors import RLError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class RunState:
    """What a resume needs besides the models.

    Attributes:
        stage, step: the last finished step.
        position: data rows drawn so far.
        weights_version: version of the policy weights.
        algorithm: the algorithm's own state.
        fingerprint: of the training data.
    """

    stage: str
    step: int
    position: int
    weights_version: int
    fingerprint: str = ""
    algorithm: dict[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one stage, as ``<folder>/step-000100``."""

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self.folder = folder
        self._keep_last = keep_last

    def save(self, state: RunState, write: Callable[[Path], None]) -> Path:
        """Write one checkpoint: ``write(directory)`` puts the models there."""
        self.begin(state, write)
        return self.commit(state.step)

    def begin(self, state: RunState, write: Callable[[Path], None]) -> None:
        """Start a checkpoint: ``write(directory)`` may go on in the background until :meth:`commit`."""
        temporary = self._temporary(state.step)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / STATE).write_text(json.dumps(asdict(state), indent=2))

    def _temporary(self, step: int) -> Path:
        return self.folder / f".tmp-step-{step:06d}"

    def commit(self, step: int) -> Path:
        """Make the checkpoint of ``step``, which is written completely, visible."""
        final = self.folder / f"step-{step:06d}"
        temporary = self._temporary(step)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(temporary)): _describe(p) for p in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*files, temporary / MANIFEST, temporary):
            _fsync(path)
        if final.exists():  # the same step saved again after a resume: replace it in one rename
            final.rename(temporary.with_name(f".old-step-{step:06d}"))
        temporary.rename(final)
        _fsync(self.folder)
        self._prune()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint; broken ones are passed over with a warning that says what is wrong."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            problem = damage(path)
            if problem is None:
                return path
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, problem)
        return None

    def at(self, step: int) -> Path:
        """The checkpoint of ``step``.

        Raises:
            RLError: there is none, or it is damaged; the message lists those there are.
        """
        path = self.folder / f"step-{step:06d}"
        if not path.is_dir():
            have = ", ".join(str(int(p.name[5:])) for p in sorted(self.folder.glob("step-*"))) or "none"
            raise RLError(f"there is no checkpoint of step {step} in {self.folder} (steps there: {have})")
        problem = damage(path)
        if problem:
            raise RLError(f"checkpoint {path} is damaged: {problem}")
        return path

    def _prune(self) -> None:
        for leftover in (*self.folder.glob(".old-*"), *self.folder.glob(".tmp-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in sorted(self.folder.glob("step-*"))[: -self._keep_last]:
            shutil.rmtree(path, ignore_errors=True)


def read_state(path: Path) -> RunState:
    """The run state inside a checkpoint."""
    return RunState(**json.loads((path / STATE).read_text()))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: missing, extra-short or altered files."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _describe(file) != expected:
            return f"{name} does not match its checksum"
    return None


def _describe(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return {"bytes": path.stat().st_size, "crc32": checksum}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
