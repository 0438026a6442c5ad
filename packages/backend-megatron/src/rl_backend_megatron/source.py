"""Sources of a model's weights: a safetensors folder, read tensor by tensor, or a model built in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from rl_core.contracts.model import Head, ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.models import build_model
from rl_torch.pretrained import weight_plan
from torch import Tensor
from transformers import PreTrainedModel

_SCORE = "score.weight"


WeightSource = Callable[[str], Tensor | None]
"""A tensor on CPU by its Hugging Face name, or None where there is none of that name."""


def open_source(spec: ModelSpec, head: Head, model: PreTrainedModel) -> WeightSource:
    """The source that ``spec`` names: safetensors, read when they are asked for and converted to the names in memory.

    A model from scratch, or in a format that only transformers reads, is built as a whole.

    Args:
        model: has the names and shapes of what is read, and no storage.

    Raises:
        EnvironmentProblem: the folder is damaged, or does not hold the weights of its config.
    """
    plan = weight_plan(spec.path, lambda: model) if spec.path is not None else None
    if plan is not None:
        return lambda name: plan.read(name) if name in plan else None
    whole = build_model(spec, dtype=torch.float32, head=head)
    output = whole.get_output_embeddings()
    tied = whole.config.tie_word_embeddings and output is not None
    if tied and output.weight is not whole.get_input_embeddings().weight:
        raise EnvironmentProblem(
            f"the files of {spec.path} have two different embeddings, which its config.json ties\n"
            "    set tie_word_embeddings: false in its config.json"
        )
    return whole.state_dict().get


def read_all(source: WeightSource, names: tuple[str, ...], shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """The tensors of ``names``; a scalar head the source lacks is zero: a new reward model starts at reward 0.

    Raises:
        EnvironmentProblem: the source lacks one, or it has another shape than ``shapes`` says.
    """
    found = []
    for name in names:
        tensor = source(name)
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
