"""What a case is, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Part = Literal["equality", "speed"]


class Skip(Exception):
    """This machine cannot do it; the text says why."""


@dataclass(frozen=True)
class Shape:
    """A small model whose numbers are compared.

    Attributes:
        longest: tokens of the longest sequence.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    longest: int


SHAPES = {
    "tiny": Shape(hidden=32, layers=2, heads=4, kv_heads=2, ffn=64, vocabulary=96, longest=24),
    "full": Shape(hidden=256, layers=4, heads=4, kv_heads=2, ffn=512, vocabulary=2048, longest=384),
}


@dataclass(frozen=True)
class Machine:
    """Where a case runs.

    Attributes:
        device: ``cuda`` or ``cpu``.
        size: ``full``, or ``tiny`` for seconds on a CPU.
        folder: for files, its own.
    """

    device: str
    size: str
    folder: str

    @property
    def shape(self) -> Shape:
        return SHAPES[self.size]

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def rounding(self, dtype: torch.dtype, *, passes: int = 1) -> float:
        """See :func:`rounding`, for a model of this shape."""
        return rounding(dtype, layers=self.shape.layers, width=self.shape.hidden, passes=passes)


@dataclass(frozen=True)
class Comparison:
    """Two numbers or tensors that should be equal.

    Attributes:
        difference: the largest, in the unit of ``tolerance``.
        note: what a reader should know.
    """

    what: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class Speed:
    """How fast something is.

    Attributes:
        model: its size.
        tokens_per_second: of one GPU.
        seconds: median of the timed steps.
        mfu: model FLOPs utilisation, 0 to 1; None where the peak is not known, or for sampling.
        goal: of ``mfu``; None where there is none.
        peak_bytes: the most that PyTorch had in use.
    """

    what: str
    model: str
    tokens_per_second: float
    seconds: float
    mfu: float | None = None
    goal: float | None = None
    peak_bytes: int | None = None
    note: str = ""


CaseFunction = Callable[[Machine], Iterator[Comparison] | Iterator[Speed]]


@dataclass(frozen=True)
class Case:
    """See the package's docstring."""

    name: str
    part: Part
    seconds: float
    run: CaseFunction

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


CASES: dict[str, Case] = {}
"""In the order in which they run."""


def case(part: Part, *, seconds: float, name: str | None = None) -> Callable[[CaseFunction], CaseFunction]:
    """Register a case; ``name`` is for functions that are made in a loop."""

    def register(function: CaseFunction) -> CaseFunction:
        title = name or function.__name__.strip("_")
        if title in CASES:
            raise ValueError(f"there is a case {title!r} already")
        CASES[title] = Case(title, part, seconds, function)
        return function

    return register


def rounding(dtype: torch.dtype, *, layers: int, width: int, passes: int = 1) -> float:
    """Relative error that rounding explains in what comes out of a transformer: eps · √n.

    n is the number of roundings on the way: about ten of each activation in a layer. Products of 16-bit numbers are
    summed in float32; in float32 itself every term of a sum of ``width`` is one rounding more. The error of one is
    uniform within eps / 2, so that eps · √n is three and a half standard deviations of their sum.

    Args:
        passes: 2 for gradients.
    """
    roundings = 10 * layers * passes * (width if dtype == torch.float32 else 1)
    return torch.finfo(dtype).eps * math.sqrt(roundings)


def compare(what: str, found: Tensor | np.ndarray, expected: Tensor | np.ndarray, *, absolute: float) -> Comparison:
    """The largest difference of any element."""
    a, b = _float64(found), _float64(expected)
    if a.shape != b.shape:
        raise ValueError(f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return Comparison(what, float((a - b).abs().max()) if a.numel() else 0.0, absolute)


def compare_norm(what: str, found: list[Tensor], expected: list[Tensor], *, relative: float) -> Comparison:
    """The norm of the difference over the norm of what is expected, over all tensors together."""
    pairs = [(_float64(a), _float64(b)) for a, b in zip(found, expected, strict=True)]
    off = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(b.square().sum()) for _, b in pairs))
    return Comparison(what, off / size if size else off, relative)


def same(what: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> Comparison:
    """Bit for bit: how many tensors differ."""
    names = found.keys() | expected.keys()
    odd = [n for n in names if n not in found or n not in expected or not torch.equal(found[n], expected[n])]
    return Comparison(what, float(len(odd)), 0.0, note=", ".join(sorted(odd)[:3]))


def _float64(values: Tensor | np.ndarray) -> Tensor:
    tensor = torch.as_tensor(values) if isinstance(values, np.ndarray) else values.detach()
    return tensor.to("cpu", torch.float64)
