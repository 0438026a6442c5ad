"""The parameters of a model under their Hugging Face names, found without allocating any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rl_core.contracts.backend import WeightBucket
from rl_torch.published import changed_names, published
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelParameters:
    """Names and shapes that weights for a model must have.

    Attributes:
        architecture: the model's class, as vLLM's registry knows it.
        shapes: Hugging Face name → shape.
        first_name: name → the first name of the same parameter; only tied parameters have several.
        published_as: the model's config where its files have other names than its parameters (experts one by one); vLLM
            reads the files' names. None where they are the same.
    """

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    first_name: dict[str, str]
    published_as: PretrainedConfig | None = None

    @classmethod
    def of(cls, config: PretrainedConfig, *, trust_remote_code: bool) -> ModelParameters:
        """The parameters of the causal language model of ``config``."""
        model = _empty(config, trust_remote_code=trust_remote_code)
        state = model.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        for name, tensor in state.items():
            first.setdefault(id(tensor), name)
        return cls(
            architecture=type(model).__name__,
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            first_name={name: first[id(tensor)] for name, tensor in state.items()},
            published_as=config if changed_names(model, state) else None,
        )

    def check(self, buckets: Sequence[WeightBucket]) -> None:
        """Raise ValueError that lists missing names, unexpected names and wrong shapes.

        Of tied parameters any one name is enough.
        """
        given = _shapes(buckets)
        have = {self.first_name[name] for name in given if name in self.shapes}
        wrong = [
            f"{name} is {list(shape)}, the model's is {list(self.shapes[name])}"
            for name, shape in given.items()
            if name in self.shapes and self.shapes[name] != shape
        ]
        findings = [
            f"{label}: {', '.join(names)}"
            for label, names in (
                ("missing", [name for name, first in self.first_name.items() if first not in have]),
                ("unexpected", [name for name in given if name not in self.shapes]),
                ("wrong shape", wrong),
            )
            if names
        ]
        if findings:
            raise ValueError("weights do not fit the model; " + "; ".join(findings))

    def renamed(self, buckets: Sequence[WeightBucket]) -> dict[str, str | None]:
        """Renamings for vLLM, which knows a tied parameter by its first name only.

        Maps a name to the first one, or to None where the first one is among ``buckets`` as well.
        """
        given = _shapes(buckets)
        renamed: dict[str, str | None] = {}
        for name in given:
            first = self.first_name[name]
            if first != name:
                taken = first in given or first in renamed.values()
                renamed[name] = None if taken else first
        return renamed


def as_published(config: PretrainedConfig, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """``named`` under the names of the model's files; see :func:`rl_torch.published.published`."""
    model = _empty(config, trust_remote_code=False)
    return published(model, named, {name: tensor.shape for name, tensor in model.state_dict().items()})


def _empty(config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def _shapes(buckets: Sequence[WeightBucket]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for b in buckets for name, shape in zip(b.names, b.shapes, strict=True)}
