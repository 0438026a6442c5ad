"""The mapping from tensors of a checkpoint to parameters of a model, checked before anything is copied.

Names change between a published folder and a model in memory: prefixes come and go, experts are stacked, old names are
renamed. transformers' own tables say how (``conversion_mapping``), so what is read here equals ``from_pretrained``.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rl_core.errors import EnvironmentProblem
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from rl_torch.checkpoint_files import Box, CheckpointFiles

logger = logging.getLogger(__name__)

NEW_HEAD = "score.weight"
"""Parameters that a folder may lack: a new reward or value model has a head of zeros."""

_ADVICE = "    give the config.json that belongs to these weights, or copy the model again"
_SHOWN = 3
_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"\.(attn|attention)\.(masked_bias|bias|causal_mask)$")
"""Tables and masks that older folders hold; models compute them."""


@dataclass
class WeightPlan:
    """The sources of the tensors of a model's ``state_dict``.

    Attributes:
        model: names and shapes; it is not written to.
        direct: parameter or persistent buffer → the tensor of the files that it is.
        converted: parameter or persistent buffer → the conversion that makes it.
        new: names that the files lack, of :data:`NEW_HEAD`.
    """

    files: CheckpointFiles
    model: PreTrainedModel
    direct: Mapping[str, str]
    converted: Mapping[str, _Conversion]
    new: frozenset[str]
    _last: tuple[_Conversion, dict[str, Tensor]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: PreTrainedModel, files: CheckpointFiles) -> WeightPlan | None:
        """The plan for ``model``, whose parameters may be on the meta device.

        None where only ``from_pretrained`` can load it: transformers initialises something that the files lack, tied
        parameters differ in the files, or a conversion needs the numbers themselves.

        Raises:
            EnvironmentProblem: files and model do not fit: lists names with both shapes or types.
        """
        state = model.state_dict(keep_vars=True)
        try:
            matched = _match(model, files, state)
        except EnvironmentProblem:
            raise
        except Exception as error:  # noqa: BLE001 - the operations of any family
            logger.warning("transformers' conversion of names is not usable: %s: %s", type(error).__name__, error)
            return None
        if matched is None:
            return None
        direct, converted, unread = matched
        shapes = {name: files.shape(stored) for name, stored in direct.items()}
        shapes |= {name: conversion.shapes[name] for name, conversion in converted.items()}
        check_shapes(state, shapes)
        check_types({**direct, **{n: s for n, c in converted.items() for s in c.names}}, state, files)
        check_unread(model, unread)
        aliases = _aliases(state)
        found = shapes.keys()
        missing = [name for name in state if not found & aliases[name]]
        lacking = [name for name in missing if name != NEW_HEAD]
        if any(_ignored(name, model._keys_to_ignore_on_load_missing) for name in lacking):
            return None
        if lacking:
            raise EnvironmentProblem(f"the files lack the weights {_listed(lacking)}\n{_ADVICE}")
        if any(_differ(group & found, direct, files) for group in aliases.values() if len(group & found) > 1):
            return None
        for name in state.keys() - found:
            tied = next((other for other in aliases[name] & found if other in direct), None)
            if tied is not None:
                direct[name] = direct[tied]
            elif name not in missing:
                return None  # tied to something that is converted
        return cls(files, model, direct, converted, frozenset(missing) & {NEW_HEAD})

    def __contains__(self, name: str) -> bool:
        return name in self.direct or name in self.converted

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A parameter on the CPU as its files have it (dequantised: in float32), or the part of it in ``box``."""
        if name in self.direct:
            return self.files.read(self.direct[name], box)
        conversion = self.converted[name]
        if self._last is None or self._last[0] is not conversion:
            self._last = None  # before the next is read
            self._last = (conversion, conversion.run(self.model, self.files.read))
        whole = self._last[1][name]
        return whole[box] if box else whole

    def close(self) -> None:
        """Close the files, and forget what was read last."""
        self._last = None
        self.files.close()


@dataclass
class _Conversion:
    """Parameters that transformers computes from several tensors, or from one of another shape.

    Attributes:
        first: the first parameter it makes.
        parts: ``(name in the files, name after renaming, the pattern it matched)``.
        shapes: of all that it makes.
    """

    first: str
    converter: Any
    parts: list[tuple[str, str, str]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The tensors of the files it reads."""
        return [name for name, _, _ in self.parts]

    def run(self, model: PreTrainedModel, read: Any) -> dict[str, Tensor]:
        """What it makes of the tensors that ``read`` returns for names."""
        converter = copy.deepcopy(self.converter)
        for name, renamed, pattern in self.parts:
            converter.add_tensor(renamed, name, pattern, read(name))
        made = converter.convert(self.first, model=model, config=model.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


def _match(
    model: PreTrainedModel, files: CheckpointFiles, state: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, _Conversion], list[str]] | None:
    """Direct tensors, converted ones, and names nothing reads."""
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix = model.base_model_prefix
    groups: dict[str, _Conversion] = {}
    direct, unread = {}, []
    known = dict(state)
    for name in sorted(files.names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, known)
        if renamed not in state:
            unread.append(name)
        elif pattern is None:
            direct[renamed] = name
        else:
            group = groups.setdefault(renamed, _Conversion(renamed, by_pattern[pattern]))
            group.parts.append((name, renamed, pattern))
    converted: dict[str, _Conversion] = {}
    for group in groups.values():
        made = group.run(model, lambda name: torch.empty(files.shape(name), dtype=torch.float32, device="meta"))
        group.shapes = {target: tuple(one.shape) for target, one in made.items() if target in state}
        converted |= dict.fromkeys(group.shapes, group)
    return direct, converted, unread


def check_shapes(state: Mapping[str, Tensor], found: Mapping[str, Sequence[int]]) -> None:
    """Compare the shapes in files with the model's.

    Raises:
        EnvironmentProblem: some differ; lists them.
    """
    wrong = [name for name, shape in found.items() if tuple(shape) != tuple(state[name].shape)]
    if NEW_HEAD in wrong:
        labels = found[NEW_HEAD][0] if found[NEW_HEAD] else 0
        raise EnvironmentProblem(
            f"{NEW_HEAD} is {list(found[NEW_HEAD])} in the files: a classifier with {labels} labels; a reward or value "
            f"model has one ({list(state[NEW_HEAD].shape)})\n    give a model with one label, or one without a head"
        )
    if wrong:
        shown = [f"{name} is {list(found[name])}, not {list(state[name].shape)}" for name in wrong]
        raise EnvironmentProblem(f"the files do not fit the config.json: {_listed(shown)}\n{_ADVICE}")


def check_types(sources: Mapping[str, str], state: Mapping[str, Tensor], files: CheckpointFiles) -> None:
    """Refuse numbers that are no weights yet: float8 and integers for a float parameter.

    Args:
        sources: name → tensor of the files; names that are not in ``state`` are taken for float parameters.

    Raises:
        EnvironmentProblem: there are some; lists them.
    """
    wrong = [
        f"{stored} is {files.dtype(stored)} {list(files.shape(stored))}"
        for name, stored in sources.items()
        if (name not in state or state[name].is_floating_point()) and not files.is_float(stored)
    ]
    if wrong:
        raise EnvironmentProblem(
            f"the files hold quantised numbers for float weights, and not how they are scaled: {_listed(wrong)}\n"
            "    give a copy of the model with float weights, or the config.json with its quantization_config"
        )


def check_unread(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Refuse weights of layers or experts that the model does not have; other heads than the model's are no harm.

    Raises:
        EnvironmentProblem: there are some; lists them.
    """
    inside = {_numberless(name)[0] for name in model.state_dict()} - {""}
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    extra = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    harmless = [*(model._keys_to_ignore_on_load_unexpected or ()), *_BUFFERS]
    prefix = f"{model.base_model_prefix}."
    wrong = []
    for name in names:
        head, number = _numberless(name)
        known = head in inside or prefix + head in inside or head.removeprefix(prefix) in inside
        predicted = layers is not None and number is not None and layers <= number < layers + extra
        if known and not predicted and not _ignored(name, harmless):
            wrong.append(name)
    if wrong:
        raise EnvironmentProblem(
            f"the files hold weights that the model of this config.json does not have: {_listed(wrong)}\n{_ADVICE}"
        )


def _numberless(name: str) -> tuple[str, int | None]:
    """``("model.layers", 3)`` of ``model.layers.3.mlp.weight``: what stands before the first number, and that."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return ("", None) if at is None else (".".join(parts[:at]), int(parts[at]))


def _ignored(name: str, patterns: Iterable[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def _aliases(state: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Name → all names of the same parameter."""
    groups: dict[int, set[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), set()).add(name)
    return {name: groups[id(tensor)] for name, tensor in state.items()}


def _differ(names: set[str], direct: Mapping[str, str], files: CheckpointFiles) -> bool:
    """Whether the files have different numbers for tied parameters: transformers then does not tie them."""
    if not names <= direct.keys():
        return True
    first, *others = sorted(names)
    whole = files.read(direct[first])
    return not all(torch.equal(whole, files.read(direct[other])) for other in others)


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
