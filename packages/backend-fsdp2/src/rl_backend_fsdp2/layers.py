"""Finding the parts of a transformers model."""

from __future__ import annotations

from torch import nn


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest list of modules that is not inside another one."""
    lists: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            lists.append(module)
            inside.update(module.modules())
    return list(max(lists, key=len, default=nn.ModuleList()))
