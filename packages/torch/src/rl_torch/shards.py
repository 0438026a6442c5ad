"""Tensors that ranks hold parts of, in safetensors files that any other split of the ranks can read.

A folder holds ``rank-<rank>-<part>.safetensors``. A file's header says where in the whole tensors its parts lie, so
there is no index file, and nothing is ever unpickled. Parts are written and read without communication.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rl_core.errors import RLError, StorageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_FILE_BYTES = 4 * 2**30
"""Tensors on an accelerator pass through host memory file by file."""

_HEADER = "shards"


@dataclass(frozen=True)
class Shard:
    """A rank's part of a tensor: a box of its elements.

    Attributes:
        name: of the whole tensor.
        data: the part, of any device; leading dimensions of size 1 may be missing.
        shape: of the whole tensor.
        offset: first index of the part in every dimension of the whole.
        owned: whether this rank writes it; of the ranks that hold the same part exactly one does.
        flexible: whether the whole may have another shape where it was saved; what is missing there keeps its value.
    """

    name: str
    data: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    owned: bool = True
    flexible: bool = False

    @property
    def extent(self) -> tuple[int, ...]:
        """Size of the part in every dimension of the whole."""
        return (1,) * (len(self.shape) - self.data.dim()) + tuple(self.data.shape)


def copied(shards: Iterable[Shard]) -> list[Shard]:
    """The owned shards with their data copied to host memory."""
    return [replace(s, data=s.data.detach().to("cpu", copy=True)) for s in shards if s.owned]


def write_shards(shards: Iterable[Shard], folder: Path, *, rank: int, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write and fsync the owned shards of this rank; ``folder`` exists.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    for part, group in enumerate(_groups([s for s in shards if s.owned and s.data.numel()], max_bytes)):
        tensors = {_key(s): s.data.detach().cpu().contiguous() for s in group}
        where = {_key(s): [s.name, list(s.shape), list(s.offset), list(s.extent)] for s in group}
        save_tensors(tensors, folder / f"rank-{rank:05d}-{part:03d}.safetensors", metadata={_HEADER: json.dumps(where)})


class BackgroundWrite:
    """A thread of this rank that writes a copy of its shards, made when this is built."""

    def __init__(self, shards: Iterable[Shard], folder: Path, *, rank: int) -> None:
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] = executor.submit(write_shards, copied(shards), folder, rank=rank)
        executor.shutdown(wait=False)

    @property
    def is_running(self) -> bool:
        """Whether this rank still writes."""
        return not self._written.done()

    def finish(self) -> None:
        """Wait until this rank has written; raises what the writing raised."""
        self._written.result()


def read_shards(shards: Sequence[Shard], folder: Path) -> None:
    """Fill the shards' data in place, however the tensors were split when they were written.

    Raises:
        RLError: a file is damaged, or the tensors saved are not those asked for.
    """
    paths = sorted(folder.glob("rank-*.safetensors"))
    if not paths:
        raise RLError(f"{folder} holds no rank-*.safetensors files\n    resume from another checkpoint, or restore it")
    files = _OpenFiles()
    stored: dict[str, list[_Piece]] = {}
    for path in paths:
        for piece in _pieces(path, files):
            stored.setdefault(piece.name, []).append(piece)
    with torch.no_grad():
        for shard in shards:
            _fill(shard, stored.get(shard.name, []), folder, files)


def save_tensors(tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """``safetensors.torch.save_file``, fsynced.

    Raises:
        StorageError: it cannot be written; a part of the file may be there.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """``safetensors.torch.load_file``.

    Raises:
        RLError: the file is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


class _OpenFiles:
    """Files by path; a job of many ranks has more of them than a process may hold open."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._open: dict[Path, Any] = {}

    def __getitem__(self, path: Path) -> Any:
        file = self._open.pop(path, None) or safe_open(path, framework="pt")
        self._open[path] = file  # last: the most recently used
        if len(self._open) > self._limit:
            del self._open[next(iter(self._open))]  # which closes it
        return file


@dataclass(frozen=True)
class _Piece:
    """A shard as it lies in a file."""

    path: Path
    key: str
    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    extent: tuple[int, ...]

    def read(self, where: tuple[slice, ...], files: _OpenFiles) -> Tensor:
        """A box of the piece; ``where`` counts from the piece's first element."""
        try:
            file = files[self.path]
            inner = where[len(self.extent) - len(file.get_slice(self.key).get_shape()) :]
            return file.get_slice(self.key)[inner] if inner else file.get_tensor(self.key)
        except (OSError, SafetensorError) as error:
            raise _damaged(self.path, error) from error


def _pieces(path: Path, files: _OpenFiles) -> Iterator[_Piece]:
    try:
        file = files[path]
        header = json.loads((file.metadata() or {})[_HEADER])
        keys = set(file.keys())
        for key, (name, shape, offset, extent) in header.items():
            piece = _Piece(path, key, str(name), _sizes(shape), _sizes(offset), _sizes(extent))
            if key not in keys or math.prod(piece.extent) != math.prod(file.get_slice(key).get_shape()):
                raise ValueError(f"the header and the tensor {key} disagree")
            if not len(piece.shape) == len(piece.offset) == len(piece.extent):
                raise ValueError(f"the header of {key} is malformed")
            yield piece
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, error) from error


def _fill(shard: Shard, pieces: Sequence[_Piece], folder: Path, files: _OpenFiles) -> None:
    if not shard.data.numel():
        return
    if not pieces:
        raise RLError(
            f"{folder} has no tensor {shard.name}: it was saved from another model\n"
            "    resume with the model and the optimizer of that run"
        )
    if pieces[0].shape != shard.shape and not shard.flexible:
        raise RLError(
            f"{folder}: {shard.name} was saved with shape {list(pieces[0].shape)}, this model's is "
            f"{list(shard.shape)}\n    resume with the model of that run"
        )
    data = shard.data.detach()
    target = data if data.dim() == len(shard.shape) else data.view(shard.extent)
    found = 0
    for piece in pieces:
        begin = [max(a, b) for a, b in zip(shard.offset, piece.offset, strict=True)]
        size = [
            min(a + n, b + m) - start
            for a, n, b, m, start in zip(shard.offset, shard.extent, piece.offset, piece.extent, begin, strict=True)
        ]
        if any(n <= 0 for n in size):
            continue
        taken = piece.read(_box(begin, size, piece.offset), files)
        target[_box(begin, size, shard.offset)].copy_(taken.view(size))
        found += math.prod(size)
    wanted = math.prod(
        max(0, min(start + n, whole) - start)
        for start, n, whole in zip(shard.offset, shard.extent, pieces[0].shape, strict=True)
    )
    if found != wanted:
        raise RLError(
            f"{folder}: {found} of the {wanted} elements of {shard.name} are there; a rank's file is missing or extra\n"
            "    resume from another checkpoint, or restore this one from a copy"
        )


def _box(begin: Sequence[int], size: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(b - o, b - o + n) for b, n, o in zip(begin, size, origin, strict=True))


def _key(shard: Shard) -> str:
    return f"{shard.name}@{','.join(map(str, shard.offset))}"


def _sizes(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _groups(shards: Sequence[Shard], max_bytes: int) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    size = 0
    for shard in shards:
        nbytes = shard.data.numel() * shard.data.element_size()
        if group and size + nbytes > max_bytes:
            yield group
            group, size = [], 0
        group.append(shard)
        size += nbytes
    if group:
        yield group


def _damaged(path: Path, error: Exception) -> RLError:
    return RLError(
        f"{path} is damaged: {type(error).__name__}: {error}\n"
        "    resume from another checkpoint, or restore this one from a copy"
    )
