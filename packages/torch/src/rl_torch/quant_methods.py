"""Which quantised checkpoints can be dequantised, from ``config.json`` alone and without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.config.paths import model_paths
from rl_core.config.problems import Problem
from rl_core.errors import EnvironmentProblem
from rl_core.model_folder import CONFIG, read_config

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig

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


def stage_problems(stage: StageConfig) -> Iterator[Problem]:
    """What loading the models of a stage that a backend loads (the policy, the algorithm's own) would refuse."""
    paths = [stage.model.path, *(path for _, path in model_paths(stage.algorithm.config))]
    for path in dict.fromkeys(paths):
        yield from folder_problems(path)


def folder_problems(path: str | None) -> Iterator[Problem]:
    """What loading a model would refuse about its quantisation, where it is a local folder."""
    if path is None or not os.path.isfile(os.path.join(path, CONFIG)):
        return
    try:
        config = read_config(Path(path))
    except EnvironmentProblem:  # the check of every model's folder says so
        return
    try:
        method_of(config)
    except EnvironmentProblem as error:
        message, _, fix = str(error).partition("\n")
        yield Problem("", f"the model {path}: {message}", fix.strip())


def _transforms(options: Mapping[str, Any]) -> bool:
    """Whether weights are rotated or sparse besides, or quantised with offsets."""
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
