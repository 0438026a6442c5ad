"""Every model folder that a config names is looked into before a run starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rl_core.config.problems import Problem
    from rl_core.config.stage import StageConfig


@hookimpl
def validate_config(config: StageConfig) -> Iterable[Problem]:
    from rl_huggingface.config_checks import folder_problems

    return folder_problems(config)
