"""No part of a model is random: log-probs that are computed again must be the first ones.

Models are trained in evaluation mode, in which transformers and PyTorch draw nothing: neither dropout, nor jitter, nor
experts (PhiMoE). Dropout is made sure of a second time here, for layers that do not look at the mode: every probability
of dropping something is 0, whatever it is called.
The model's config keeps its values, because it is what an export writes.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_PROBABILITY = re.compile(r"dropout|pdrop|drop_?(path|prob|rate|p\b)|layer_?drop", re.IGNORECASE)


def switch_randomness_off(model: nn.Module) -> None:
    """Set ``model`` to evaluation mode, and to 0 every dropout and layer drop in it."""
    model.eval()
    for module in model.modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            if isinstance(value, bool) or not isinstance(value, float | int) or not value:
                continue
            if _PROBABILITY.search(name) or (is_dropout and name in ("p", "drop_prob")):
                _clear(module, name)


def _clear(module: Any, name: str) -> None:
    setattr(module, name, 0.0)
