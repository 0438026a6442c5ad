"""Context parallelism: a row's tokens are spread over ranks, which exchange keys and values in attention.

Each layer gathers the keys and values of the whole row (as in Llama 3 training, Dubey et al. 2024, section 3.3.2),
which costs little compared with attention itself where key/value heads are few. Every other activation exists for
a rank's own tokens only. A rank takes one piece from the front of the row and one from the back, which balances the
work of causal attention. PyTorch's own ring attention works on CUDA only and without packed rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rl_core.errors import EnvironmentProblem
from rl_torch.microbatch import MicroBatch
from rl_torch.scores import refuse_unknown
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "rl_context_parallel"
"""Name under which transformers knows the attention function below."""


@dataclass(frozen=True)
class ContextSplit:
    """A micro-batch's R × L positions divided by columns over the ranks of ``group``.

    Attributes:
        columns: int64 [L / ranks], this rank's columns.
        mask: bool [R, 1, L / ranks, L]: which keys (in the order they are gathered) a query may look at.
    """

    group: dist.ProcessGroup
    columns: Tensor
    mask: Tensor
    width: int

    @classmethod
    def of(cls, micro: MicroBatch, group: dist.ProcessGroup) -> ContextSplit:
        """Divide ``micro``; its width must be a multiple of twice the number of ranks."""
        rows, width = micro.input_ids.shape
        device = micro.input_ids.device
        every = [
            _columns(width, rank, dist.get_world_size(group), device) for rank in range(dist.get_world_size(group))
        ]
        mine, order = every[dist.get_rank(group)], torch.cat(every)
        positions = micro.position_ids
        if positions is None:
            positions = torch.arange(width, device=device).expand(rows, width)
        segments = (positions == 0).cumsum(dim=1)
        allowed = (segments[:, mine, None] == segments[:, None, order]) & (
            positions[:, mine, None] >= positions[:, None, order]
        )
        return cls(group=group, columns=mine, mask=allowed[:, None], width=width)

    def take(self, grid: Tensor) -> Tensor:
        """[R, L] → [R, L / ranks]: this rank's columns."""
        return grid[:, self.columns].contiguous()

    def local(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Which of ``indices`` (row · L + column) are this rank's, as places in it, and their local indices."""
        place = torch.full((self.width,), -1, dtype=torch.int64, device=indices.device)
        place[self.columns] = torch.arange(len(self.columns), device=indices.device)
        row, column = indices // self.width, place[indices % self.width]
        mine = (column >= 0).nonzero().squeeze(1)
        return mine, row[mine] * len(self.columns) + column[mine]

    def collect(self, values: Tensor, mine: Tensor, count: int) -> Tensor:
        """The values of all ``count`` positions on every rank, from each rank's own at ``mine``."""
        return _Collect.apply(values, mine, count, self.group)


def split_forward(
    model: Any, micro: MicroBatch, split: ContextSplit, *, outputs: tuple[str, ...], temperature: float, scores: Tensor
) -> dict[str, Tensor]:
    """A forward pass over this rank's tokens; returns ``outputs`` of the whole micro-batch.

    Args:
        scores: int64 [B], the positions of ``scores``.
    """
    positions = micro.position_ids
    if positions is None:
        positions = torch.arange(split.width, device=micro.input_ids.device).expand_as(micro.input_ids)
    tokens, predictors = split.local(micro.predictors)
    sequences, last = split.local(scores)
    results = model(
        split.take(micro.input_ids),
        split.take(positions),
        predictors=predictors,
        targets=micro.targets[tokens],
        last=last,
        outputs=outputs,
        temperature=temperature,
        context_split=split,
    )
    of = {name: (sequences, len(scores)) if name == "scores" else (tokens, len(micro.targets)) for name in outputs}
    return {name: split.collect(results[name], *of[name]) for name in outputs}


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    context_split: ContextSplit | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of this rank's queries [R, heads, L/ranks, d] over the keys and values of whole rows."""
    if context_split is None:
        raise RuntimeError("context-parallel attention needs the split of the micro-batch")
    refuse_unknown("context-parallel attention", attention_mask, options)
    key, value = (_GatherTokens.apply(x, context_split.group) for x in (key, value))
    result = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=context_split.mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result.transpose(1, 2).contiguous(), None


def use_context_parallel_attention(model: Any) -> None:
    """Have ``model`` (a transformers model) use :func:`attention`.

    Raises:
        EnvironmentProblem: its layers look back over a limited window only.
    """
    config = model.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise EnvironmentProblem(
            f"context parallelism does not know the sliding window of {config.model_type!r} models "
            f"({config.sliding_window} tokens)\n    set backend.parallel.cp: 1"
        )
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        raise EnvironmentProblem(
            f"context parallelism cannot replace the attention of {type(model).__name__}\n"
            "    set backend.parallel.cp: 1"
        )
    AttentionInterface.register(ATTENTION, attention)
    model.config._attn_implementation = ATTENTION


def _columns(width: int, rank: int, ranks: int, device: torch.device) -> Tensor:
    piece = width // (2 * ranks)
    inner = torch.arange(piece, device=device)
    return torch.cat([inner + rank * piece, inner + (2 * ranks - 1 - rank) * piece])


class _GatherTokens(torch.autograd.Function):
    """[R, heads, n, d] of every rank → [R, heads, ranks · n, d]; gradients are summed where they belong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole, group=ctx.group)
        return whole.chunk(dist.get_world_size(ctx.group), dim=2)[dist.get_rank(ctx.group)], None


class _Collect(torch.autograd.Function):
    """Every rank continues with the whole and computes the same loss, so it keeps the gradient of its own part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mine: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(mine)
        whole = values.new_zeros(count)
        whole[mine] = values
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0][ctx.saved_tensors[0]], None, None, None
