"""Token ids that vLLM never samples: embedding rows without a token, padding, fillers.

vLLM loads the class by name in every process of an engine. It acts behind the raw log-probabilities that the
generator reports, which therefore stay those of the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

PROCESSOR = "rl_generation_vllm.exclusion:NeverSampled"
KEY = "rl_never_sampled"


def settings(vocab_size: int, ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of ``vllm.LLM``; none where nothing is excluded.

    Args:
        vocab_size: ids from here on have no token; 0 for unknown.
        ids: further ids.
    """
    if not vocab_size and not ids:
        return {}
    excluded = {"vocab_size": vocab_size, "ids": list(ids)}
    return {"logits_processors": [PROCESSOR], "additional_config": {KEY: excluded}}


class NeverSampled(LogitsProcessor):
    """Sets the logits of the excluded ids to minus infinity, for every request."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        excluded = vllm_config.additional_config[KEY]
        self._end: int | None = excluded["vocab_size"] or None
        self._ids = torch.tensor(excluded["ids"], dtype=torch.int64, device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits`` [R, V], changed in place."""
        if self._end is not None:
            logits[:, self._end :] = -torch.inf
        if len(self._ids):
            logits.index_fill_(1, self._ids, -torch.inf)
        return logits

    def is_argmax_invariant(self) -> bool:
        """The most likely token may be one of them."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """All requests are treated alike."""
