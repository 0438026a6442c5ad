"""Weights under the names that folders are published with.

Since transformers 5 a model in memory may differ from its files: the experts of a layer are one parameter
``experts.gate_up_proj``, in files they are ``experts.0.gate_proj.weight`` and so on. ``save_pretrained`` turns all
weights of a model back at once; here they are turned back while they stream by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion


def published(
    model: PreTrainedModel, named: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that ``model.save_pretrained`` would write for ``named``, with its names and shapes.

    Consumes its input lazily: a tensor waits only for those that it is joined with, which belong to one layer.

    Args:
        model: says what is to be done; its own weights are not looked at.
        named: every parameter and persistent buffer once, under its name in ``model``.
        shapes: of all of ``named``.

    Raises:
        ValueError: ``named`` lacks tensors of ``shapes`` that others are joined with.
    """
    ignored = set(model._keys_to_ignore_on_save or ())
    changed = changed_names(model, [name for name in shapes if name not in ignored])
    joined = _joined(model, changed, shapes)
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named:
        if name in ignored:
            continue
        if name not in changed:
            yield name, tensor
            continue
        block = joined.get(name, {name})
        first = min(block)
        waiting.setdefault(first, {})[name] = tensor
        if len(waiting[first]) == len(block):
            yield from revert_weight_conversion(model, waiting.pop(first)).items()
    if waiting:
        names = sorted(name for block in waiting.values() for name in block)
        raise ValueError(f"weights are to be joined with others that did not come: {', '.join(names)}")


def changed_names(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that have another name, or other numbers, in files than in ``model``."""
    # Those that the model was read with, if it was read; else those that transformers has for its class.
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
    back = [conversion.reverse_transform() for conversion in conversions]
    return {name for name in names if any(step.rename_source_key(name)[1] is not None for step in back)}


def _joined(model: PreTrainedModel, names: Iterable[str], shapes: Mapping[str, torch.Size]) -> dict[str, set[str]]:
    """Name → all of its block that are saved in another way together than alone."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(_block(name), []).append(name)
    found: dict[str, set[str]] = {}
    for block in blocks.values():
        empty = {name: torch.empty(shapes[name], device="meta") for name in block}
        together = {name: tensor.shape for name, tensor in revert_weight_conversion(model, empty).items()}
        joined = {name for name in block if not _same(model, {name: empty[name]}, together)}
        found |= dict.fromkeys(joined, joined)
    return found


def _same(model: PreTrainedModel, alone: dict[str, Tensor], together: Mapping[str, torch.Size]) -> bool:
    try:
        found = revert_weight_conversion(model, alone)
    except Exception:  # noqa: BLE001 - an operation may fail in any way without the others
        return False
    return all(together.get(name) == tensor.shape for name, tensor in found.items())


def _block(name: str) -> str:
    """``model.layers.3`` of ``model.layers.3.mlp.gate.weight``; all of a name without a number."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else name
