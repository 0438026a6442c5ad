"""Quantisation methods that can be dequantised, from ``config.json`` alone and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_core.errors import EnvironmentProblem

MXFP4 = "mxfp4"
SUFFIXES = {
    "fp8": ("_scale_inv", ".scale"),
    "fbgemm_fp8": ("_scale",),
    "compressed-tensors": ("_scale",),
}
"""``quant_method`` → what a name of a weight's scales ends in."""
ADVICE = "    give a copy of the model with float weights (bfloat16), as it was before it was quantised"


def method_of(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """``(quant_method, quantization_config)`` of a ``config.json``; None where it names no quantisation.

    Raises:
        EnvironmentProblem: what stands there is malformed, or the method cannot be undone.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    keys = ("quantization_config", "compression_config")
    found = next((place[key] for place in places for key in keys if place.get(key)), None)
    if found is None:
        return None
    if not isinstance(found, Mapping) or not isinstance(found.get("quant_method"), str):
        raise EnvironmentProblem("its config.json has a quantization_config without a quant_method\n" + ADVICE)
    method = found["quant_method"]
    if method != MXFP4 and (method not in SUFFIXES or _transforms(found)):
        raise EnvironmentProblem(
            f"its weights are quantised (quant_method {method!r}) in a way that cannot be undone here\n{ADVICE}"
        )
    return method, found


def _transforms(options: Mapping[str, Any]) -> bool:
    """Whether weights are also rotated or sparse, or quantised with offsets."""
    groups = options.get("config_groups")
    uneven = any(
        isinstance(group, Mapping) and _of(group, "weights").get("symmetric") is False
        for group in (groups.values() if isinstance(groups, Mapping) else ())
    )
    sparse = _of(options, "sparsity_config").get("format", "dense") != "dense"
    return uneven or bool(options.get("transform_config")) or sparse


def _of(options: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = options.get(key)
    return found if isinstance(found, Mapping) else {}
