"""A checkpoint's list of its files, with sizes and checksums: what makes a damaged one known as such.

It is written last. Its own content is checksummed too, and files that it does not list are damage like files that
are missing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 2
_BLOCK_BYTES = 1 << 22
_THREADS = 8


def write_manifest(folder: Path) -> None:
    """List every file of ``folder``, and put the files, the manifest and the folders on disk (fsync).

    Raises:
        OSError: something cannot be read or written.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        fsync(path)
    listed = dict(zip((_name(p, folder) for p in files), _described(files), strict=True))
    content = {"format": FORMAT, "files": listed, "crc32": _own_checksum(listed)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fsync(manifest)
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        fsync(inner)
    fsync(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, naming the file, or None. Every byte is read."""
    try:
        listed = read_manifest(folder)
        found = {_name(p, folder): p for p in folder.rglob("*") if not p.is_dir()}
        found.pop(MANIFEST, None)
        for name in listed:
            if name not in found:
                return f"{name} is missing"
        for name in sorted(found):
            if name not in listed:
                return f"{name} is not in {MANIFEST}"
            size, wanted = found[name].stat().st_size, listed[name]["bytes"]
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


def read_manifest(folder: Path) -> dict[str, dict[str, int]]:
    """File → ``{"bytes", "crc32"}``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"{MANIFEST} is damaged: it lists no files")
    listed: dict[str, Any] = content["files"]
    if content.get("crc32") != _own_checksum(listed) or content.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} does not match its own checksum")
    for name, facts in listed.items():
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if not inside or not isinstance(facts, dict) or set(facts) != {"bytes", "crc32"}:
            raise ValueError(f"{MANIFEST} is damaged: it lists {name!r}")
    if not text.endswith(b"\n"):
        raise ValueError(f"{MANIFEST} is damaged: its last line has no end")
    return listed


def size_of(folder: Path) -> int:
    """Bytes of all files that the manifest lists; 0 where it cannot be read."""
    try:
        return sum(facts["bytes"] for facts in read_manifest(folder).values())
    except (OSError, ValueError):
        return 0


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
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return {"bytes": size, "crc32": checksum}


def _own_checksum(listed: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(listed, sort_keys=True).encode())


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
