"""Config checks of quantised models, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.config.paths import model_paths
from rl_core.config.problems import Problem
from rl_core.errors import EnvironmentProblem
from rl_huggingface.model_folder import CONFIG, read_config

from rl_torch.quant_methods import method_of

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


def stage_problems(stage: StageConfig) -> Iterator[Problem]:
    """Faults that loading the models of a stage (the policy, the algorithm's own) would report."""
    paths = [stage.model.path, *(path for _, path in model_paths(stage.algorithm.config))]
    for path in dict.fromkeys(paths):
        yield from folder_problems(path)


def folder_problems(path: str | None) -> Iterator[Problem]:
    """Faults of a model's quantisation that loading would report, if it is a local folder."""
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
