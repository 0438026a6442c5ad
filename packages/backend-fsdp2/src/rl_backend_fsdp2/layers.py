"""Finding the parts of a transformers model."""

from __future__ import annotations

import re

from torch import nn

_OTHER_MODALITIES = re.compile(r"(^|[._])(image|vision|visual|audio)")


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest list of modules that is not inside another one.

    Of a model for images and text too, those of its text model.
    """
    lists: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and module not in inside and not _OTHER_MODALITIES.search(name):
            lists.append(module)
            inside.update(module.modules())
    return max(map(list, lists), key=len, default=[])
