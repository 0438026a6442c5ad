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

try:
    from transformers.core_model_loading import revert_weight_conversion
except ImportError:  # transformers 4 has no such differences
    revert_weight_conversion = None


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
    if revert_weight_conversion is None:
        yield from ((name, tensor) for name, tensor in named if name not in ignored)
        return
    joined = _joined(model, [name for name in shapes if name not in ignored], shapes)
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named:
        if name in ignored:
            continue
        block = _block(name)
        if name not in joined:
            yield from _reverted(model, {name: tensor})
            continue
        waiting.setdefault(block, {})[name] = tensor
        if len(waiting[block]) == sum(_block(other) == block for other in joined):
            yield from _reverted(model, waiting.pop(block))
    if waiting:
        raise ValueError(f"weights that are saved together never came together: {', '.join(sorted(waiting))}")


def _joined(model: PreTrainedModel, names: list[str], shapes: Mapping[str, torch.Size]) -> set[str]:
    """The names that are saved differently beside others of their block than alone."""
    empty = {name: torch.empty(shapes[name], device="meta") for name in names}
    blocks: dict[str, dict[str, Tensor]] = {}
    for name in names:
        blocks.setdefault(_block(name), {})[name] = empty[name]
    together = {name: tensor.shape for block in blocks.values() for name, tensor in _reverted(model, block)}
    return {name for name in names if not _same(model, {name: empty[name]}, together)}


def _same(model: PreTrainedModel, alone: dict[str, Tensor], together: Mapping[str, torch.Size]) -> bool:
    try:
        found = list(_reverted(model, alone))
    except Exception:  # noqa: BLE001 - an operation may fail in any way without the others
        return False
    return all(together.get(name) == tensor.shape for name, tensor in found)


def _reverted(model: PreTrainedModel, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from revert_weight_conversion(model, tensors).items()


def _block(name: str) -> str:
    """``model.layers.3`` of ``model.layers.3.mlp.gate.weight``; all of a name without a number."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else name
