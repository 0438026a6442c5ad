"""A checkpoint's list of its files, with sizes and checksums: what makes a damaged one known as such.

It is written last. Its own content is checksummed too, and files that it does not list are damage like files that
are missing. It names the stage and the step, so that a folder that was renamed is known as well.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rl_core.io.files import open_regular, parse_object, read_regular

MANIFEST = "manifest.json"
FORMAT = 3
"""Format 2 names neither stage nor step."""
_BLOCK_BYTES = 1 << 22
_THREADS = 8


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        files: ``{"bytes", "crc32"}`` by the file's name in the folder.
        stage, step: what it is the checkpoint of; None in those of older versions.
    """

    files: dict[str, dict[str, int]]
    stage: str | None = None
    step: int | None = None


def write_manifest(folder: Path, *, stage: str, step: int) -> None:
    """List every file of ``folder``, and put the files, the manifest and the folders on disk (fsync).

    Raises:
        OSError: something cannot be read or written.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        fsync(path)
    listed = dict(zip((_name(p, folder) for p in files), _described(files), strict=True))
    content: dict[str, Any] = {"format": FORMAT, "stage": stage, "step": step, "files": listed}
    content["crc32"] = _own_checksum(content)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fsync(manifest)
    _fsync_folders(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, naming the file, or None. Every byte is read."""
    try:
        listed = read_manifest(folder).files
        found = {_name(p, folder): p for p in folder.rglob("*") if not p.is_dir()}
        found.pop(MANIFEST, None)
        for name in listed:
            if name not in found:
                return f"{name} is missing"
        for name in sorted(found):
            if name not in listed:
                return f"{name} is not in {MANIFEST}"
            size, wanted = found[name].stat(follow_symlinks=False).st_size, listed[name]["bytes"]
            if size != wanted:
                return f"{name} has {size} bytes instead of {wanted}"
        for name, now in zip(listed, _described(found[name] for name in listed), strict=True):
            if now != listed[name]:
                return f"{name} does not match its checksum"
    except OSError as error:
        name = Path(error.filename).name if error.filename else folder.name
        return f"{name}: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    return None


def read_manifest(folder: Path) -> Manifest:
    """What the manifest of a checkpoint says, compared with its own checksum.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of an unknown format; names the key.
    """
    text = read_regular(folder / MANIFEST)
    try:
        content = parse_object(text)
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is damaged: {error}") from error
    version = content.get("format")
    if type(version) is not int or version not in (2, FORMAT):
        raise ValueError(f"{MANIFEST} has the format {version!r}, and this version reads 2 and {FORMAT}")
    listed = content.get("files")
    if not isinstance(listed, dict):
        raise ValueError(f"{MANIFEST} is damaged: it lists no files")
    if content.pop("crc32", None) != _own_checksum(content if version > 2 else listed):
        raise ValueError(f"{MANIFEST} does not match its own checksum")
    for name, facts in listed.items():
        path = PurePosixPath(name)
        inside = name.isprintable() and not path.is_absolute() and ".." not in path.parts
        if not inside or not _are_facts(facts):
            raise ValueError(f"{MANIFEST} is damaged: it lists {name!r}")
    if not text.endswith(b"\n"):
        raise ValueError(f"{MANIFEST} is damaged: its last line has no end")
    if version == 2:
        return Manifest(listed)
    stage, step = content.get("stage"), content.get("step")
    if not isinstance(stage, str) or type(step) is not int:
        raise ValueError(f"{MANIFEST} is damaged: stage {stage!r} and step {step!r} are no name and number")
    return Manifest(listed, stage, step)


def size_of(folder: Path) -> int:
    """Bytes of all files that the manifest lists; 0 where it cannot be read."""
    try:
        return sum(facts["bytes"] for facts in read_manifest(folder).files.values())
    except (OSError, ValueError):
        return 0


def fsync_all(folder: Path) -> None:
    """Have the system put all files and folders in ``folder`` on disk.

    Raises:
        OSError: it cannot.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            fsync(path)
    _fsync_folders(folder)


def _fsync_folders(folder: Path) -> None:
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        fsync(inner)
    fsync(folder)


def fsync(path: Path) -> None:
    """Have the system put a file's content, or a folder's entries, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _described(files: Iterable[Path]) -> list[dict[str, int]]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_describe, files))


def _describe(path: Path) -> dict[str, int]:
    size = checksum = 0
    with os.fdopen(open_regular(path), "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return {"bytes": size, "crc32": checksum}


def _are_facts(facts: Any) -> bool:
    return (
        isinstance(facts, dict)
        and set(facts) == {"bytes", "crc32"}
        and all(type(value) is int and value >= 0 for value in facts.values())
    )


def _own_checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
