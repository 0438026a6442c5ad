"""Attention over packed rows without a dense mask: each sequence looks at itself only, at no cost for the others.

On CUDA in 16 bits PyTorch's variable-length flash attention does the work (Dao et al. 2022); elsewhere sequences are
attended to one after the other, which is what tests compare with.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rl_torch.microbatch import MicroBatch

ATTENTION = "rl_varlen"
"""Name under which transformers knows the attention function below."""


@dataclass(frozen=True)
class Segments:
    """Where sequences lie in the R · L cells of a micro-batch, row after row.

    Attributes:
        bounds: int32 [S+1]: segment s has the cells ``bounds[s]`` to ``bounds[s+1] - 1``.
        longest: cells of the longest segment.
    """

    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, micro: MicroBatch) -> Segments:
        """A segment begins wherever positions restart at 0; a padded row is one."""
        rows, width = micro.input_ids.shape
        if micro.position_ids is None:
            starts = torch.arange(rows, device=micro.input_ids.device) * width
        else:
            starts = (micro.position_ids.flatten() == 0).nonzero().squeeze(1)
        bounds = torch.cat([starts, starts.new_tensor([rows * width])]).to(torch.int32)
        return cls(bounds, int(bounds.diff().max()))


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside segments: [R, heads, L, d] → [R, L, heads, d].

    Raises:
        RuntimeError: the caller did not say where the segments are.
    """
    if segments is None:
        raise RuntimeError("variable-length attention needs the segments of the micro-batch")
    rows, _heads, width, _dim = query.shape
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    attend = _flash if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) else _one_by_one
    result = attend(*flat, segments, scaling, sliding_window)
    return result.unflatten(0, (rows, width)), None


def flash_is_available() -> bool:
    """Whether this PyTorch's variable-length attention knows what is asked of it here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "scale"} <= inspect.signature(varlen_attn).parameters.keys()


@torch.compiler.assume_constant_result
def _takes_shared_keys() -> bool:
    """Whether several query heads may have one key head; PyTorch 2.11 wants a key head for each."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def use_varlen_attention(model: Any) -> None:
    """Have ``model`` (a transformers model) use :func:`attention`; its forward then needs ``segments=``."""
    AttentionInterface.register(ATTENTION, attention)
    model.config._attn_implementation = ATTENTION


def _flash(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = segments.bounds, segments.longest
    options = {}
    if q.shape[1] != k.shape[1]:
        if _takes_shared_keys():
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    result = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        **options,
    )
    return result if isinstance(result, Tensor) else result[0]


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int | None) -> Tensor:
    bounds = segments.bounds.tolist()
    parts = []
    for start, stop in itertools.pairwise(bounds):
        of = [x[start:stop].transpose(0, 1) for x in (q, k, v)]
        gqa = q.shape[1] != k.shape[1]
        if window is None or stop - start <= window:
            part = scaled_dot_product_attention(*of, is_causal=True, scale=scale, enable_gqa=gqa)
        else:
            place = torch.arange(stop - start, device=q.device)
            back = place[:, None] - place[None, :]
            mask = (back >= 0) & (back < window)
            part = scaled_dot_product_attention(*of, attn_mask=mask, scale=scale, enable_gqa=gqa)
        parts.append(part.transpose(0, 1))
    return torch.cat(parts)
