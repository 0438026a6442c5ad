"""The safetensors files of a model, as float tensors: quantised weights are dequantised as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_core.errors import EnvironmentProblem
from rl_huggingface.foreign import read_json_object
from rl_huggingface.model_folder import (
    CONFIG,
    INDEX,
    SINGLE,
    StoredTensor,
    check_counts,
    check_files,
    files_of_index,
    read_config,
    read_header,
    stored_tensors,
)
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from rl_torch.quant_methods import method_of
from rl_torch.quantized import FLOATS, Packed4, Recipe, Scaled, apply_scales, recipes, unpack_fp4

Box = tuple[slice, ...]
"""A part of a tensor: a slice with a start and an end for each of its dimensions."""

_OPEN_FILES = 64


@dataclass
class CheckpointFiles:
    """Tensors of a model's files by name, read one at a time and in part.

    Attributes:
        stored: as they lie in the files.
        recipes: weights that are computed from several of them.
        names: of the tensors that can be read: with weights in the place of what they are computed from.
    """

    stored: Mapping[str, StoredTensor]
    recipes: Mapping[str, Recipe]
    names: tuple[str, ...]
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> CheckpointFiles:
        """Of the tensors in files, and the ``config.json`` next to them.

        Raises:
            EnvironmentProblem: they are quantised in a way that cannot be undone.
        """
        made, used = recipes(config, stored)
        return cls(stored, made, tuple(dict.fromkeys(name for name in (*stored, *made) if name not in used)))

    @property
    def is_quantized(self) -> bool:
        """Whether some weights are computed from others."""
        return bool(self.recipes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor as :meth:`read` returns it."""
        recipe = self.recipes.get(name)
        return recipe.shape if recipe is not None else self.stored[name].shape

    def dtype(self, name: str) -> str:
        """As safetensors names it; ``F32`` for what is dequantised."""
        return "F32" if name in self.recipes else self.stored[name].dtype

    def is_float(self, name: str) -> bool:
        """Whether its numbers are the weights themselves."""
        return self.dtype(name) in FLOATS

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A tensor on the CPU, or the part of it in ``box``; float32 where it is dequantised."""
        recipe = self.recipes.get(name)
        if isinstance(recipe, Scaled):
            return self._scaled(recipe, box)
        if isinstance(recipe, Packed4):
            where = box or tuple(slice(0, n) for n in recipe.shape)
            some = where[0]
            part = unpack_fp4(self._raw(recipe.blocks, (some,)), self._raw(recipe.scales, (some,)))
            return part[(slice(None), *where[1:])]
        return self._raw(name, box)

    def close(self) -> None:
        """Close the files; they are opened again where something is read."""
        self._open.clear()

    def _scaled(self, recipe: Scaled, box: Box | None) -> Tensor:
        where = box or tuple(slice(0, n) for n in recipe.shape)
        scale = self._raw(recipe.scale, None)
        if len(where) > 2 and scale.numel() > 1:
            scale = scale[where[:-2]]
        part = self._raw(recipe.weight, box)
        return apply_scales(part, scale, block=recipe.block, at=(where[-2].start, where[-1].start))

    def _raw(self, name: str, box: Box | None) -> Tensor:
        path = self.stored[name].file
        file = self._open.pop(path, None) or safe_open(path, framework="pt")
        self._open[path] = file  # last: the most recently used
        if len(self._open) > _OPEN_FILES:
            del self._open[next(iter(self._open))]
        return file.get_slice(name)[box] if box else file.get_tensor(name)


def open_checkpoint(path: str) -> CheckpointFiles | None:
    """The safetensors files of a local folder or hub id; None where it has none (older pickles).

    Raises:
        EnvironmentProblem: a file is missing, cut or malformed, the config is, or the quantisation is not known.
    """
    folder = Path(path)
    if folder.is_dir():
        check_files(folder)
        config = read_config(folder)
        stored = stored_tensors(folder)
        if stored is not None:
            check_counts(config, stored, where=folder / CONFIG)
    else:
        found = _cached(path, CONFIG)
        config = read_json_object(found) if found is not None else {}
        stored = _stored_of_hub(path)
    if stored is None:
        named = method_of(config)
        if named is not None:
            raise EnvironmentProblem(
                f"the model {path} is quantised (quant_method {named[0]!r}) and has no safetensors files\n"
                "    give a copy of the model with float weights"
            )
        return None
    return CheckpointFiles.of(stored, config)


def _stored_of_hub(path: str) -> dict[str, StoredTensor] | None:
    single = _cached(path, SINGLE)
    if single is not None:
        return read_header(single)
    index = _cached(path, INDEX)
    if index is None:
        return None
    stored: dict[str, StoredTensor] = {}
    for name in files_of_index(index):
        file = _cached(path, name)
        if file is None:
            raise EnvironmentProblem(f"the model {path} lacks the file {name}, which its {INDEX} names")
        stored |= read_header(file)
    return stored


def _cached(path: str, name: str) -> Path | None:
    """A file of a hub id, downloaded where it is not cached."""
    options: Any = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    found = cached_file(path, name, **options)
    return None if found is None else Path(found)
