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
from transformers import AttentionInterface

from rl_torch.architectures import body_of, only_windows
from rl_torch.microbatch import MicroBatch
from rl_torch.scores import attend, refuse_unknown

ATTENTION = "rl_varlen"
"""Name under which transformers knows the attention function below."""


@dataclass(frozen=True)
class Segments:
    """Where sequences lie in the R · L positions of a micro-batch, row after row.

    Attributes:
        bounds: int32 [S+1]: segment s has the positions ``bounds[s]`` to ``bounds[s+1] - 1``.
        longest: positions of the longest segment.
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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside segments: [R, heads, L, d] → [R, L, heads, d].

    Raises:
        RuntimeError: the caller did not say where the segments are, or asks for another attention.
    """
    if segments is None:
        raise RuntimeError("variable-length attention needs the segments of the micro-batch")
    refuse_unknown("variable-length attention", attention_mask, options)
    rows, _heads, width, _dim = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if softcap is None and s_aux is None and _fits_flash(query, value):
        result = _flash(q, k, v, segments, scaling, sliding_window)
    else:
        result = _one_by_one(q, k, v, segments, sliding_window, scale=scaling, softcap=softcap, sinks=s_aux)
    return result.unflatten(0, (rows, width)), None


def _fits_flash(query: Tensor, value: Tensor) -> bool:
    """Whether flash attention can do it: not with values of another width than keys (latent attention)."""
    in_16_bits = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    return in_16_bits and query.shape[-1] == value.shape[-1] <= 256


@torch.compiler.assume_constant_result
def _takes_shared_keys() -> bool:
    """Whether several query heads may have one key head; PyTorch 2.11 wants a key head for each."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@torch.no_grad()
def supports_varlen_attention(model: Any) -> bool:
    """Whether ``model`` computes the same with it: tried on two sequences in a row."""
    if not model._supports_attention_backend or not only_windows(model.config):
        return False
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(1, 12, device=device).remainder(model.config.get_text_config(decoder=True).vocab_size)
    body, before, split = body_of(model), model.config._attn_implementation, 4
    expected = [body(input_ids=x[None], use_cache=False).last_hidden_state[0] for x in (ids[:split], ids[split:])]
    positions = torch.cat([torch.arange(len(x), device=device) for x in expected])[None]
    segments = Segments(torch.tensor([0, split, len(ids)], dtype=torch.int32, device=device), len(ids) - split)
    use_varlen_attention(model)
    try:
        found = body(input_ids=ids[None], position_ids=positions, use_cache=False, segments=segments)
    except (RuntimeError, TypeError):  # arguments that the function, or the model, does not take
        return False
    finally:
        model.config._attn_implementation = before
    whole = torch.cat(expected).float()
    gap = (found.last_hidden_state[0].float() - whole).abs().max()
    return bool(gap <= 1e-3 * (1 + whole.abs().max()))


def use_varlen_attention(model: Any) -> None:
    """Have ``model`` (a transformers model) use :func:`attention`; its forward then needs ``segments=``."""
    AttentionInterface.register(ATTENTION, attention)
    model.config._attn_implementation = ATTENTION


def _flash(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = segments.bounds, segments.longest
    options: dict[str, Any] = {}
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


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, **scores: Any) -> Tensor:
    parts = []
    for start, stop in itertools.pairwise(segments.bounds.tolist()):
        query, key, value = (x[start:stop].transpose(0, 1)[None] for x in (q, k, v))
        mask = None
        if window is not None and stop - start > window:
            place = torch.arange(stop - start, device=q.device)
            back = place[:, None] - place[None, :]
            mask = (back >= 0) & (back < window)
        parts.append(attend(query, key, value, mask, **scores)[0].transpose(0, 1))
    return torch.cat(parts)
