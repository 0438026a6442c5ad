"""The model folders that a config names are whole; a run would find out minutes later, in a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from rl_core.config.paths import model_paths
from rl_core.config.problems import Problem
from rl_core.config.stage import StageConfig
from rl_core.errors import EnvironmentProblem

from rl_huggingface.model_folder import check_model_folder


def folder_problems(stage: StageConfig) -> Iterator[Problem]:
    """What is wrong with folders on this machine; one that an earlier stage will write is not looked at."""
    for section, config in _sections(stage):
        for key, path in model_paths(config) if isinstance(config, BaseModel) else ():
            if os.path.isdir(path) and not _is_below(path, stage.run.directory):
                try:
                    check_model_folder(path)
                except EnvironmentProblem as error:
                    message, _, fix = str(error).partition("\n")
                    where = ".".join(map(str, (*section, *key)))
                    yield Problem(where, message, fix.strip() or "copy or download the model again")


def _sections(stage: StageConfig) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Path and config of every section."""
    yield ("model",), stage.model
    for name in ("algorithm", "backend", "generator", "environment", "tokenizer", "data", "eval_data"):
        if (choice := getattr(stage, name)) is not None:
            yield (name,), choice.config
    for name in ("rewards", "evaluators", "loggers"):
        for index, choice in enumerate(getattr(stage, name)):
            yield (name, index), choice.config


def _is_below(path: str, run: str | None) -> bool:
    return run is not None and path.startswith(os.path.join(run, ""))
