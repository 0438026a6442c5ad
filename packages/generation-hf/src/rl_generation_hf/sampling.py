"""From logits to one token per row and its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rl_generation_hf.exclusion import NeverSampled

# Rows are sampled in chunks of about this many logits, which bounds the float64 temporaries.
_CHUNK_ELEMENTS = 2**24


class ShapesDistribution(Protocol):
    """What of a request's sampling changes the distribution of its tokens."""

    @property
    def temperature(self) -> float:
        """Logits are divided by it; 0 takes the most likely token."""
        ...

    @property
    def top_p(self) -> float:
        """1 for off."""
        ...

    @property
    def top_k(self) -> int:
        """0 for off."""
        ...


@dataclass(frozen=True)
class Shape:
    """:class:`ShapesDistribution` and nothing else."""

    temperature: float
    top_p: float
    top_k: int


def sample(
    logits: Tensor,
    uniforms: Tensor,
    sampling: ShapesDistribution | Sequence[ShapesDistribution],
    never: NeverSampled | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at ``uniforms``.

    Args:
        logits: [R, V], any floating type.
        uniforms: float64 [R] in [0, 1); unused at temperature 0.
        sampling: of all rows, or of each of R.
        never: ids that are not drawn.

    Returns:
        Tokens int64 [R] and float32 [R] log-probabilities over the full vocabulary at the sampling
        temperature (at temperature 0: at temperature 1), before ``never``, top-k and top-p.
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    each = _Each.of(sampling, logits)
    if len(logits) <= rows:
        return _sample(logits, uniforms, each, never)
    parts = [
        _sample(logits[at : at + rows], uniforms[at : at + rows], each.part(at, at + rows), never)
        for at in range(0, len(logits), rows)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def scaled_logprobs(logits: Tensor, temperature: float) -> Tensor:
    """float32 log-probabilities at ``temperature`` (0: at 1) over the last dimension."""
    logits = logits.float()
    return torch.log_softmax(logits / temperature if temperature not in (0, 1) else logits, dim=-1)


@dataclass(frozen=True)
class _Each:
    """The sampling of all rows where it is the same, as numbers; else of each, as columns [R, 1].

    Attributes:
        divisor: of the logits; 1 where the temperature is 0.
        greedy: whether the most likely token is taken; a column where rows differ.
        nucleus: top-p.
        kept: top-k, 0 for off.
    """

    divisor: float | Tensor
    greedy: bool | Tensor
    nucleus: float | Tensor
    kept: int | Tensor

    @classmethod
    def of(cls, sampling: ShapesDistribution | Sequence[ShapesDistribution], like: Tensor) -> _Each:
        if not isinstance(sampling, Sequence):
            greedy = sampling.temperature == 0
            return cls(1.0 if greedy else sampling.temperature, greedy, sampling.top_p, sampling.top_k)

        def column(values: list[float], dtype: torch.dtype) -> float | Tensor:
            if all(value == values[0] for value in values):
                return values[0]
            return torch.tensor(values, dtype=dtype, device=like.device)[:, None]

        greedy_rows = column([each.temperature == 0 for each in sampling], torch.bool)
        return cls(
            column([each.temperature or 1.0 for each in sampling], torch.float32),
            greedy_rows if isinstance(greedy_rows, Tensor) else bool(greedy_rows),
            column([each.top_p for each in sampling], torch.float64),
            _whole(column([each.top_k for each in sampling], torch.int64)),
        )

    def part(self, start: int, stop: int) -> _Each:
        """Of some rows."""

        def cut(value: Any) -> Any:
            return value[start:stop] if isinstance(value, Tensor) else value

        return _Each(cut(self.divisor), cut(self.greedy), cut(self.nucleus), cut(self.kept))


def _whole(value: float | Tensor) -> int | Tensor:
    return value if isinstance(value, Tensor) else int(value)


def _sample(logits: Tensor, uniforms: Tensor, each: _Each, never: NeverSampled | None) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    if isinstance(each.divisor, Tensor) or each.divisor != 1:
        logits = logits / each.divisor
    logprobs = torch.log_softmax(logits, dim=-1)
    excluded = None if never is None or never.none else never
    if excluded is not None:
        excluded.exclude(logprobs)
    if each.greedy is True:
        tokens = logprobs.argmax(dim=-1)
    else:
        # The most likely token that is left gets weight 1, so that a little probability is enough.
        weights = (logprobs - logprobs.amax(-1, keepdim=True)).exp_() if excluded is not None else logprobs.exp()
        tokens = _invert(_filtered(weights, each), uniforms)
        if isinstance(each.greedy, Tensor):
            tokens = torch.where(each.greedy[:, 0], logprobs.argmax(dim=-1), tokens)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _filtered(probabilities: Tensor, each: _Each) -> Tensor:
    """Zero what top-k, then top-p on what is left, exclude; ties with the last kept token are kept.

    They need not sum to 1. Only values are compared, never positions, so the result does not depend on a sort's tie
    order.
    """
    vocab = probabilities.shape[1]
    if isinstance(each.kept, Tensor):
        limited = (each.kept > 0) & (each.kept < vocab)
        widths = torch.where(limited, each.kept, 1)
        values = probabilities.topk(int(widths.max()), dim=-1).values
        smallest = values.gather(1, widths - 1).masked_fill(~limited, 0)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    elif 0 < each.kept < vocab:
        smallest = probabilities.topk(each.kept, dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    if isinstance(each.nucleus, Tensor) or each.nucleus < 1:
        ordered = probabilities.sort(dim=-1, descending=True).values
        before = ordered.double().cumsum(-1)
        total = before[:, -1:].clone()
        before -= ordered
        kept = before < each.nucleus * total
        if isinstance(each.nucleus, Tensor):
            kept |= each.nucleus == 1  # whatever rounding makes of the sums
        kept[:, 0] = True
        smallest = ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    return probabilities


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``uniform × total``; never one of weight 0."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # Only NaN logits reach past the end; the caller reports those by their log-probability.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
