"""Token log-probs, entropies and the like from hidden states, with the vocabulary split over ranks.

Each rank computes its own columns of the logits, a chunk of tokens at a time; ranks exchange five numbers
per token, never logits. The backward pass needs no communication: with the global normaliser every rank
knows its columns' probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rl_torch.logprobs import chunk_size
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """The token ids ``start … start + count - 1`` of ``size``; ``group`` holds the ranks with the others.

    ``count`` leaves padding rows out, so it can be less than the rank's part of the matrix, even 0.
    """

    start: int
    count: int
    size: int
    group: Any

    @classmethod
    def of(cls, *, size: int, rows: int, group: Any) -> VocabShard:
        """The shard of this rank, whose part of the output embedding has ``rows`` rows."""
        start = group.rank() * rows
        return cls(start, max(0, min(size - start, rows)), size, group)


def token_outputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab: VocabShard,
    outputs: tuple[str, ...] = ("logprobs",),
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> dict[str, Tensor]:
    """:func:`rl_torch.logprobs.token_outputs` for a split vocabulary; same names, formulas and gradients.

    ``hidden`` must be equal on all ranks of the group. Its gradient comes out as this rank's part of a sum
    over the group.

    Args:
        hidden: [N, H]; row n predicts ``targets[n]``.
        weight: [rows, H]: this rank's rows of the output embedding.
        targets: int64 [N], ids of the whole vocabulary.
        chunk_tokens: tokens whose logits exist at once.

    Returns:
        float32 [N] per name, equal on all ranks.
    """
    step = chunk_tokens or chunk_size(max(vocab.count, 1))
    values = _TokenOutputs.apply(hidden, weight, targets, temperature, tuple(outputs), step, vocab)
    return dict(zip(outputs, values, strict=True))


class _TokenOutputs(torch.autograd.Function):
    """With p = softmax(z), the derivatives by z_j are: of log p_y, 1[j=y] - p_j; of the entropy H,
    -p_j (log p_j + H); of the mean log-prob, 1/V - p_j; of the logsumexp, p_j."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        names: tuple[str, ...],
        step: int,
        vocab: VocabShard,
    ) -> tuple[Tensor, ...]:
        count = hidden.shape[0]
        results = {n: torch.empty(count, device=hidden.device) for n in {*names, "logsumexp", "entropy"}}
        for start in range(0, count, step):
            part = slice(start, start + step)
            z = _logits(hidden[part], weight, temperature, vocab)
            for name, value in _values(z, targets[part], vocab).items():
                if name in results:
                    results[name][part] = value
        ctx.save_for_backward(hidden, weight, targets, results["logsumexp"], results["entropy"])
        ctx.temperature, ctx.names, ctx.step, ctx.vocab = temperature, names, step, vocab
        return tuple(results[name].clone() for name in names)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, logsumexp, entropy = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        vocab: VocabShard = ctx.vocab
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Summed over chunks in full precision: bf16 sums lose small contributions.
        grad_weight = torch.zeros(weight.shape, device=weight.device) if need_weight else None
        for start in range(0, hidden.shape[0], ctx.step):
            part = slice(start, start + ctx.step)
            h = hidden[part]
            log_p = _logits(h, weight, ctx.temperature, vocab) - logsumexp[part, None]
            given = {name: g[part, None] for name, g in zip(ctx.names, gradients, strict=True)}
            grad = _logits_gradient(given, log_p, targets[part], entropy[part, None], vocab) / ctx.temperature
            grad = grad.to(weight.dtype)
            if need_hidden:
                grad_hidden[part] = grad @ weight[: vocab.count]
            if need_weight:
                grad_weight[: vocab.count] += grad.T @ h
        if need_weight:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float, vocab: VocabShard) -> Tensor:
    """float32 [n, vocab.count]."""
    logits = torch.nn.functional.linear(hidden, weight[: vocab.count]).float()
    return logits / temperature if temperature != 1.0 else logits


def _values(z: Tensor, targets: Tensor, vocab: VocabShard) -> dict[str, Tensor]:
    """[n] per output, from this rank's logits [n, count] and one exchange of sums."""
    count = z.shape[0]
    highest = z.max(1).values if vocab.count else z.new_full((count,), -torch.inf)
    if vocab.group.size() > 1:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=vocab.group)
    shifted = z - highest[:, None]
    mass = shifted.exp()
    here, column = _local(targets, vocab)
    at_target = z.new_zeros(count)
    if vocab.count:
        at_target = torch.where(here, z.gather(1, column[:, None]).squeeze(1), 0.0)
    sums = torch.stack([mass.sum(1), (mass * shifted).sum(1), z.sum(1), at_target])
    if vocab.group.size() > 1:
        dist.all_reduce(sums, group=vocab.group)
    total, weighted, everything, target = sums
    logsumexp = highest + total.log()
    return {
        "logprobs": target - logsumexp,
        "entropy": total.log() - weighted / total,
        "mean_logprobs": everything / vocab.size - logsumexp,
        "logsumexp": logsumexp,
    }


def _logits_gradient(
    given: Mapping[str, Tensor], log_p: Tensor, targets: Tensor, entropy: Tensor, vocab: VocabShard
) -> Tensor:
    """[n, count]: the gradient by z from those by the outputs ([n, 1] each); see :class:`_TokenOutputs`."""
    signs = {"logprobs": -1.0, "mean_logprobs": -1.0, "logsumexp": 1.0}
    weight_of_p = sum(sign * given[name] for name, sign in signs.items() if name in given)
    p = log_p.exp()
    grad = weight_of_p * p
    if "entropy" in given:
        grad = grad - given["entropy"] * p * (log_p + entropy)
    if "mean_logprobs" in given:
        grad = grad + given["mean_logprobs"] / vocab.size
    if "logprobs" in given and vocab.count:
        here, column = _local(targets, vocab)
        grad.scatter_add_(1, column[:, None], given["logprobs"] * here[:, None])
    return grad


def _local(targets: Tensor, vocab: VocabShard) -> tuple[Tensor, Tensor]:
    """``(is the target in this shard, its column or 0)``."""
    column = targets - vocab.start
    here = (column >= 0) & (column < vocab.count)
    return here, torch.where(here, column, 0)
