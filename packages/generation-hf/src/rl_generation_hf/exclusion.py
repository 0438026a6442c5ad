"""Token ids that are never sampled: embedding rows without a token, padding, fillers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class NeverSampled:
    """Excludes ids from sampling, and from nothing else: log-probabilities stay those of the full vocabulary.

    Args:
        rows: of the model's embedding.
        vocab_size: ids from here on have no token; 0 for unknown.
        ids: further ids, below ``vocab_size``.
    """

    def __init__(self, rows: int, *, vocab_size: int = 0, ids: Sequence[int] = ()) -> None:
        end = min(vocab_size or rows, rows)
        inside = {i for i in ids if 0 <= i < end}
        while end - 1 in inside:
            end -= 1
            inside.remove(end)
        self._end = end
        self._inside = torch.tensor(sorted(inside), dtype=torch.int64)
        self.none = end == rows and not inside

    def exclude(self, logprobs: Tensor) -> Tensor:
        """``logprobs`` [R, V], in place: minus infinity for the excluded ids."""
        logprobs[:, self._end :] = -torch.inf  # most often all there is: a slice, not an index
        if len(self._inside):
            self._inside = self._inside.to(logprobs.device)
            logprobs.index_fill_(1, self._inside, -torch.inf)
        return logprobs
