"""A softmax over a vocabulary of which each rank of a process group holds some rows (Shoeybi et al. 2019).

The logits are never gathered: ranks exchange one maximum and one sum per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """The rows of the output embedding that this rank holds.

    A rank may hold none: where the vocabulary is short, or padded to equal parts.

    Attributes:
        group: the ranks that hold the whole vocabulary between them, in order.
        start: index of this rank's first row.
        total: rows on all ranks.
    """

    group: dist.ProcessGroup
    start: int
    total: int

    @property
    def per_rank(self) -> int:
        """Rows that a rank holds on average, rounded up: the same number on all of them."""
        return -(-self.total // self.group.size())

    def log_softmax(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of this rank's logits [N, V_local]: their log-probs over the whole vocabulary, and the logsumexp [N]."""
        highest = z.amax(dim=1) if z.shape[1] else z.new_full((z.shape[0],), -torch.inf)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        total = (z - highest[:, None]).exp().sum(dim=1)
        dist.all_reduce(total, group=self.group)
        logsumexp = highest + total.log()
        return z - logsumexp[:, None], logsumexp

    def sum(self, x: Tensor) -> Tensor:
        """``x`` added up over the group, in place."""
        dist.all_reduce(x, group=self.group)
        return x

    def locate(self, targets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """[N, 1] targets as indices into this rank's ``rows`` rows, and whether each is among them."""
        index = targets - self.start
        mine = (index >= 0) & (index < rows)
        return index.clamp(0, max(rows - 1, 0)), mine
