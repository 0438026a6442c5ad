"""Causal attention of equally long sequences, forward and backward, where heads of queries may share keys and values.

Short sequences have the softmax written out: PyTorch's flash attention for CPUs is made for long ones, and takes about
twice as long at 32 to 128 tokens (two threads of a Zen 4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_kernels_cpu.precision import exact

Gradients = tuple[Tensor, Tensor, Tensor]
Backward = Callable[[Tensor], Gradients]
WritingBackward = Callable[[Tensor, Gradients], None]

LONGEST_WRITTEN_OUT = 256
"""Tokens; the scores of longer sequences would take too much memory."""

_VECTOR = 16
"""float32 in a register of AVX-512; PyTorch's softmax takes about six times as long for rows shorter than that."""

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Heads:
    """Sizes of the attention in one layer.

    Attributes:
        queries: heads of queries.
        keys: heads of keys and values.
        width: of a head.
        scale: of the products.
        window: tokens that each token sees, itself among them; None: all before it.
    """

    queries: int
    keys: int
    width: int
    scale: float
    window: int | None = None


def attend(
    shapes: tuple[tuple[int, int], ...], query: Tensor, key: Tensor, value: Tensor, heads: Heads
) -> tuple[Tensor, Backward]:
    """softmax(scale · query keyᵀ) value in groups of sequences of one length.

    Args:
        shapes: sequences and length of each group, C tokens in all.
        query: [C · heads.queries, d], group by group [sequences, heads, length, d].
        key, value: [C · heads.keys, d].

    Returns:
        As ``query``; and the gradients by all three as a function of that by the output.
    """

    def split(states: Tensor, count: int) -> list[Tensor]:
        parts = states.split([sequences * count * length for sequences, length in shapes])
        return [part.view(s, count, n, heads.width) for part, (s, n) in zip(parts, shapes, strict=True)]

    def groups(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return zip(split(query, heads.queries), split(key, heads.keys), split(value, heads.keys), strict=True)

    output = torch.empty_like(query)
    places = split(output, heads.queries)
    backwards = [
        attend_equal(*group, heads, out=out) for group, out in zip(groups(query, key, value), places, strict=True)
    ]

    def backward(gradient: Tensor) -> Gradients:
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        parts = zip(backwards, split(gradient, heads.queries), groups(*found), strict=True)
        for write, part, outs in parts:
            write(part, outs)
        return found

    return output, backward


def attend_equal(query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, out: Tensor) -> WritingBackward:
    """The same for B sequences of one length L, written to ``out``; returns what writes the gradients by all three.

    Args:
        query: [B, heads.queries, L, d], contiguous; so are the others, and gradients.
        key, value: [B, heads.keys, L, d].
    """
    how = _written_out if query.shape[2] <= LONGEST_WRITTEN_OUT else _flash
    return how(query, key, value, heads, out)


def _written_out(query: Tensor, key: Tensor, value: Tensor, heads: Heads, out: Tensor) -> WritingBackward:
    count, _, length, width = query.shape
    together = heads.queries // heads.keys
    # Queries that share keys are rows of one matrix. In 16 bits scores would lose too much.
    q = exact(query).view(count * heads.keys, together * length, width)
    k, v = (exact(x).view(count * heads.keys, length, width) for x in (key, value))
    mask = _mask(length, heads.window, q.dtype).repeat(together, 1)
    shares = _softmax(torch.baddbmm(mask, q, k.mT, alpha=heads.scale))

    def backward(gradient: Tensor, outs: Gradients) -> None:
        g = exact(gradient).view(q.shape)
        by_shares = torch.bmm(g, v.mT)
        by_scores = _softmax_backward(by_shares, shares).mul_(heads.scale)
        products = (by_scores, k), (by_scores.mT, q), (shares.mT, g)
        for factors, place in zip(products, outs, strict=True):
            _multiply(*factors, place)

    _multiply(shares, v, out)
    return backward


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """[N, A, B] times [N, B, C], rounded to the dtype of ``out``, which has as many elements as the product."""
    if out.dtype == left.dtype:
        torch.bmm(left, right, out=out.view(len(left), left.shape[1], right.shape[2]))
    else:
        out.copy_(torch.bmm(left, right).view_as(out))


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; ``scores`` may be overwritten."""
    if scores.shape[-1] >= _VECTOR:
        return torch.softmax(scores, dim=-1)
    powers = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return powers.div_(powers.sum(-1, keepdim=True))


def _softmax_backward(gradient: Tensor, shares: Tensor) -> Tensor:
    """By the scores; ``gradient`` may be overwritten."""
    if shares.shape[-1] >= _VECTOR:
        return torch.ops.aten._softmax_backward_data(gradient, shares, -1, shares.dtype)
    return gradient.sub_(torch.linalg.vecdot(gradient, shares).unsqueeze(-1)).mul_(shares)


def _flash(query: Tensor, key: Tensor, value: Tensor, heads: Heads, out: Tensor) -> WritingBackward:
    together, length = heads.queries // heads.keys, query.shape[2]
    k, v = (x.repeat_interleave(together, 1) for x in (key, value))
    causal = heads.window is None or heads.window >= length
    mask = None if causal else _mask(length, heads.window, query.dtype)
    output, logsumexp = _FLASH(query, k, v, 0.0, causal, attn_mask=mask, scale=heads.scale)

    def backward(gradient: Tensor, outs: Gradients) -> None:
        by_query, *others = _FLASH_BACKWARD(
            gradient, query, k, v, output, logsumexp, 0.0, causal, attn_mask=mask, scale=heads.scale
        )
        outs[0].copy_(by_query)
        for place, by_repeated in zip(outs[1:], others, strict=True):
            torch.sum(by_repeated.unflatten(1, (-1, together)), 2, out=place)

    out.copy_(output)
    return backward


@functools.lru_cache(maxsize=64)
def _mask(length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[L, L] to add to the scores: 0 where a token (row) sees another (column), else -inf."""
    place = torch.arange(length)
    back = place[:, None] - place[None, :]
    hidden = back < 0 if window is None else (back < 0) | (back >= window)
    return torch.zeros(length, length, dtype=dtype).masked_fill_(hidden, -torch.inf)
