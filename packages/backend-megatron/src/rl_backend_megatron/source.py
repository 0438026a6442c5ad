"""Sources of a model's weights: a safetensors folder, read tensor by tensor, or a model built in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from rl_core.contracts.model import Head, ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.models import build_model
from rl_torch.pretrained import weight_plan
from rl_torch.weight_plan import WeightPlan
from torch import Tensor
from transformers import PreTrainedModel

_SCORE = "score.weight"


class WeightSource(Protocol):
    """Tensors by Hugging Face name."""

    def read(self, name: str) -> Tensor | None:
        """The tensor on CPU, or None where the source has no such name."""
        ...


class ModelSource:
    """The weights of a whole model in memory: drawn from a seed, or from a format only transformers reads."""

    def __init__(self, spec: ModelSpec, head: Head) -> None:
        model = build_model(spec, dtype=torch.float32, head=head)
        output = model.get_output_embeddings()
        tied = model.config.tie_word_embeddings and output is not None
        if tied and output.weight is not model.get_input_embeddings().weight:
            raise EnvironmentProblem(
                f"the files of {spec.path} have two different embeddings, which its config.json ties\n"
                "    set tie_word_embeddings: false in its config.json"
            )
        self._state = model.state_dict()

    def read(self, name: str) -> Tensor | None:
        """One of its tensors."""
        return self._state.get(name)


class FolderSource:
    """The tensors of a folder's safetensors files, converted to the names in memory and read one at a time."""

    def __init__(self, plan: WeightPlan) -> None:
        self._plan = plan

    def read(self, name: str) -> Tensor | None:
        """One tensor, read now."""
        return self._plan.read(name) if name in self._plan else None


def open_source(spec: ModelSpec, head: Head, model: PreTrainedModel) -> WeightSource:
    """The source that ``spec`` names.

    Args:
        model: has the names and shapes of what is read, and no storage.

    Raises:
        EnvironmentProblem: the folder is damaged, or does not hold the weights of its config.
    """
    plan = weight_plan(spec.path, lambda: model) if spec.path is not None else None
    if plan is not None:
        return FolderSource(plan)
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
