"""Quantised checkpoints: which tensors belong together, and the numbers they stand for.

What transformers dequantises when it loads a model is dequantised here, in float32: float8 with a scale for a tensor,
for rows or for blocks (``fp8`` as DeepSeek-V3 and Qwen3 are published, ``fbgemm_fp8``, ``compressed-tensors``), int8
with a scale, and MXFP4 (``mxfp4`` as gpt-oss is published; OCP Microscaling Formats 1.0). Everything else is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rl_core.errors import EnvironmentProblem
from rl_huggingface.model_folder import StoredTensor
from torch import Tensor

from rl_torch.quant_methods import ADVICE, MXFP4, SUFFIXES, method_of

FLOATS = {"F64", "F32", "F16", "BF16"}
_SMALL = {"F8_E4M3", "F8_E5M2", "I8"}
_SCALES = FLOATS | {"F8_E8M0", "U8"}
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

# Of activations and of cached keys and values: nothing that weights are computed from.
_UNUSED = re.compile(r"(^|\.|_)((activation|input|output)_scale|input_scale_ub)$|\.[qkv]_scale$")


@dataclass(frozen=True)
class Scaled:
    """A weight stored as small numbers times scales.

    Attributes:
        weight, scale: names in the files.
        shape: of the weight.
        block: rows and columns of the weight's last two dimensions that share a scale.
    """

    weight: str
    scale: str
    shape: tuple[int, ...]
    block: tuple[int, int]


@dataclass(frozen=True)
class Packed4:
    """A stack of experts in MXFP4: ``blocks`` uint8 [E, R, G, 16] and ``scales`` uint8 [E, R, G].

    ``shape`` is [E, 32 · G, R]: transformers keeps these weights transposed.
    """

    blocks: str
    scales: str
    shape: tuple[int, ...]


Recipe = Scaled | Packed4


def recipes(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> tuple[dict[str, Recipe], set[str]]:
    """``(weight's name → how to compute it, names that are used up by that)``.

    Args:
        config: of ``config.json``.
        stored: the tensors of the files.

    Raises:
        EnvironmentProblem: a quantisation that cannot be undone here, or scales that do not fit their weights.
    """
    found = method_of(config)
    if found is None:
        return {}, set()
    method, options = found
    if method == MXFP4:
        return _packed(stored)
    block = _block(options, default=(128, 128) if method == "fp8" else None)
    made: dict[str, Recipe] = {}
    used = {name for name in stored if _UNUSED.search(name)}
    for name, tensor in stored.items():
        if name in used:
            continue
        scale = _scale_of(name, stored, SUFFIXES[method])
        if scale is not None and tensor.dtype in _SMALL:
            made[name] = Scaled(name, scale, tensor.shape, _checked(name, tensor, scale, stored[scale], block))
            used |= {scale}
    return made, used


def _scale_of(name: str, stored: Mapping[str, StoredTensor], suffixes: tuple[str, ...]) -> str | None:
    stem = name.removesuffix(".weight")
    candidates = [stem + suffix if suffix.startswith(".") else name + suffix for suffix in suffixes]
    return next((one for one in candidates if one in stored and one != name), None)


def _block(options: Mapping[str, Any], *, default: tuple[int, int] | None) -> tuple[int, int] | None:
    block = options.get("weight_block_size", default and list(default))
    groups = options.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        block = block or (weights.get("block_structure") if isinstance(weights, Mapping) else None)
    if block is None:
        return None
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise EnvironmentProblem(f"its quantization_config has the block size {block!r}, not two positive numbers")
    return (block[0], block[1])


def _checked(
    name: str, weight: StoredTensor, scale: str, stored: StoredTensor, block: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns that share a scale, from the shapes of both and the block size of the config."""
    rows, columns = (1, *weight.shape)[-2:]
    lead = weight.shape[:-2]
    fits: Iterator[tuple[int, int]] = iter(())
    if stored.dtype in _SCALES and len(weight.shape) >= 2:
        fits = (
            candidate
            for candidate in _candidates(rows, columns, stored.shape, block)
            if _grid(stored.shape, candidate, weight.shape)
        )
    found = next(fits, None)
    if found is None:
        raise EnvironmentProblem(
            f"{name} is {weight.dtype} {list(weight.shape)}, but its scales {scale} are {stored.dtype} "
            f"{list(stored.shape)}"
            + (f" for blocks of {list(block)}" if block else "")
            + f"{' for each of ' + str(list(lead)) if lead else ''}\n{ADVICE}"
        )
    return found


def _candidates(
    rows: int, columns: int, scale: tuple[int, ...], block: tuple[int, int] | None
) -> Iterator[tuple[int, int]]:
    yield (rows, columns)  # one for the tensor
    yield (1, columns)  # one for each row
    if block is not None:
        yield block
    elif len(scale) >= 2 and scale[-2] == rows and scale[-1] and columns % scale[-1] == 0:
        yield (1, columns // scale[-1])  # groups inside of rows


def _grid(scale: tuple[int, ...], block: tuple[int, int], shape: tuple[int, ...]) -> bool:
    """Whether ``scale`` is the shape of the scales of ``block``s of a weight of ``shape``."""
    *lead, rows, columns = shape
    grid = (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    if math.prod(grid) == 1 and not lead:
        return math.prod(scale) == 1
    flat = grid[1] == 1 and scale == (*lead, grid[0])
    return flat or scale == (*lead, *grid)


def apply_scales(weight: Tensor, scale: Tensor, *, block: tuple[int, int], at: tuple[int, int] = (0, 0)) -> Tensor:
    """float32: ``weight · scale``, of a part of a weight whose first row and column in the whole are ``at``.

    Args:
        weight: float8 or int8 [..., R, C].
        scale: the scales of all rows and columns (of the leading dimensions of ``weight``); uint8 are exponents of 2
            with a bias of 127.
        block: see :class:`Scaled`.
    """
    factors = (scale.float() - 127.0).exp2() if scale.dtype == torch.uint8 else scale.float()
    values = weight.float()
    rows, columns = values.shape[-2:]
    if factors.numel() == 1:
        return values * factors.reshape(())
    if factors.dim() < values.dim():
        factors = factors.unsqueeze(-1)
    row = torch.arange(at[0], at[0] + rows) // block[0]
    column = torch.arange(at[1], at[1] + columns) // block[1]
    return values * factors.index_select(-2, row).index_select(-1, column)


def _packed(stored: Mapping[str, StoredTensor]) -> tuple[dict[str, Recipe], set[str]]:
    made: dict[str, Recipe] = {}
    used: set[str] = set()
    for name, blocks in stored.items():
        stem = name.removesuffix("_blocks")
        scales = stored.get(f"{stem}_scales")
        if stem == name or scales is None:
            continue
        if len(blocks.shape) != 4 or blocks.shape[-1] != 16 or scales.shape != blocks.shape[:-1]:
            raise EnvironmentProblem(
                f"{name} is {list(blocks.shape)}, but its scales are {list(scales.shape)}\n{ADVICE}"
            )
        if (blocks.dtype, scales.dtype) != ("U8", "U8"):
            raise EnvironmentProblem(f"{name} is {blocks.dtype} with scales {scales.dtype}, not U8 and U8\n{ADVICE}")
        experts, rows, groups, _ = blocks.shape
        made[stem] = Packed4(name, f"{stem}_scales", (experts, 32 * groups, rows))
        used |= {name, f"{stem}_scales"}
    return made, used


def unpack_fp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """float32 [E, 32 · G, R] of :class:`Packed4`: two numbers in each byte, the low half first."""
    table = torch.tensor(_FP4)
    halves = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], -1)
    values = torch.ldexp(halves.flatten(-2), scales.to(torch.int32).unsqueeze(-1) - 127)
    return values.flatten(-2).transpose(1, 2).contiguous()
