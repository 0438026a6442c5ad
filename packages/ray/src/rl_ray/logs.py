"""Ray's own logs in the run directory: linked while Ray runs, copied when it stops."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path

from rl_secrets.redaction import copy_masked

logger = logging.getLogger(__name__)


def link_logs(source: Path, logs: Path) -> None:
    """Make Ray's logs in ``source`` reachable as ``logs/ray``; what was there before is renamed."""
    link = logs / "ray"
    try:
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            shutil.move(link, logs / f"ray-{int(link.stat().st_mtime)}")
        link.symlink_to(source, target_is_directory=True)
    except OSError as error:
        logger.warning("cannot link Ray's logs into %s: %s (they are in %s)", logs, error, source)


def keep_logs(source: Path, logs: Path) -> None:
    """Copy Ray's logs to ``logs/ray``: regular files without known secrets; no link is followed, whoever made it."""
    target = logs / "ray"
    try:
        if target.is_symlink():
            target.unlink()
        for folder, _, files, descriptor in os.fwalk(source, follow_symlinks=False):
            copies = target / os.path.relpath(folder, source)
            copies.mkdir(parents=True, exist_ok=True)
            for name in files:
                _copy(name, descriptor, copies / name)
    except OSError as error:
        logger.warning("cannot copy Ray's logs from %s to %s: %s", source, target, error)


def _copy(name: str, folder: int, target: Path) -> None:
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as reader, target.open("wb") as writer:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            copy_masked(reader, writer)
