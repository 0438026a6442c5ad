"""Where a model's weights come from: a safetensors folder, read tensor by tensor, or a model built in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from rl_core.contracts.model import Head, ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.models import build_model
from safetensors import safe_open
from torch import Tensor

_SCORE = "score.weight"
_OF_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class WeightSource(Protocol):
    """Tensors by Hugging Face name."""

    def read(self, name: str) -> Tensor | None:
        """The tensor on CPU, or None where the source has no such name."""
        ...


class FolderSource:
    """Reads ``model.safetensors``, or the shards of ``model.safetensors.index.json``, lazily."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._files: Mapping[str, Path] = {
                name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()
            }
        else:
            path = folder / "model.safetensors"
            with safe_open(path, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), path)

    @staticmethod
    def fits(folder: Path) -> bool:
        """Whether the folder has safetensors under the names this class knows."""
        return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))

    def read(self, name: str) -> Tensor | None:
        """One tensor, read now."""
        if name not in self._files:
            return self._stacked(name)
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def _stacked(self, name: str) -> Tensor | None:
        """The stacked weights of experts that the folder has one by one, as published folders do."""
        layer, found, which = name.partition(".experts.")
        parts = _OF_EXPERTS.get(which, ())
        experts = []
        while found and parts and f"{layer}.experts.{len(experts)}.{parts[0]}.weight" in self._files:
            number = len(experts)
            own = [self.read(f"{layer}.experts.{number}.{part}.weight") for part in parts]
            experts.append(torch.cat([tensor for tensor in own if tensor is not None]))
        return torch.stack(experts) if experts else None


class ModelSource:
    """The weights of a whole model in memory: drawn from a seed, or from a format only transformers reads."""

    def __init__(self, spec: ModelSpec, head: Head) -> None:
        self._state = build_model(spec, dtype=torch.float32, head=head).state_dict()

    def read(self, name: str) -> Tensor | None:
        """One of its tensors."""
        return self._state.get(name)


def open_source(spec: ModelSpec, head: Head) -> WeightSource:
    """The source that ``spec`` names."""
    if spec.path is not None and FolderSource.fits(Path(spec.path)):
        return FolderSource(Path(spec.path))
    return ModelSource(spec, head)


def read_all(source: WeightSource, names: tuple[str, ...], shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """The tensors of ``names``; a scalar head the source lacks is zero: a new reward model starts at reward 0.

    Raises:
        EnvironmentProblem: the source lacks one, or it has another shape than ``shapes`` says.
    """
    found = []
    for name in names:
        tensor = source.read(name)
        if tensor is None and name == _SCORE:
            tensor = torch.zeros(shapes[name])
        if tensor is None:
            raise EnvironmentProblem(f"the model's folder lacks the weights {name}")
        if tensor.shape != shapes[name]:
            raise EnvironmentProblem(
                f"the model's folder has {name} as {list(tensor.shape)}; its config.json says {list(shapes[name])}"
            )
        found.append(tensor)
    return found
