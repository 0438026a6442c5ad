"""The validated config: what a run is given. All values are frozen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rl_secrets.redaction import redact

from rl_core.component import ComponentChoice
from rl_core.config.run_section import RunSection
from rl_core.config.sections import ModelConfig
from rl_core.config.yaml_rules import dump_yaml

SINGLE_STAGE = "train"
"""Name of the only stage of a config without ``stages:``."""


@dataclass(frozen=True)
class StageConfig:
    """One stage, with everything it selected.

    A section that nothing in the stage reads is None (or empty), even where another stage uses it.

    Attributes:
        resolved: the stage's sections as plain data, defaults included; ``${env:…}`` and ``${secret:…}`` stay, and
            so a typed secret is ``${secret:typed.KEY}``.
    """

    name: str
    model: ModelConfig
    run: RunSection
    algorithm: ComponentChoice
    backend: ComponentChoice
    generator: ComponentChoice | None
    tokenizer: ComponentChoice
    data: ComponentChoice
    eval_data: ComponentChoice | None
    rewards: tuple[ComponentChoice, ...]
    evaluators: tuple[ComponentChoice, ...]
    loggers: tuple[ComponentChoice, ...]
    resolved: Mapping[str, Any]
    environment: ComponentChoice | None = None
    rollout: ComponentChoice | None = None

    @property
    def max_tokens_per_turn(self) -> int:
        """Most tokens the model writes at a stretch; the stage has a generator."""
        assert self.generator is not None
        given = self.environment.config.max_tokens_per_turn if self.environment is not None else None
        return given or self.generator.config.max_new_tokens

    @property
    def max_completion_tokens(self) -> int:
        """Most tokens the model writes in one sequence, over all turns; the stage has a generator."""
        turns = self.environment.config.max_turns if self.environment is not None else 1
        return turns * self.max_tokens_per_turn

    @property
    def completion_limit_name(self) -> str:
        """The name of :attr:`max_completion_tokens` in messages."""
        if self.environment is None:
            return "generator.max_new_tokens"
        given = self.environment.config.max_tokens_per_turn
        return f"environment.max_turns × {'max_tokens_per_turn' if given else 'generator.max_new_tokens'},"

    def choices(self) -> tuple[ComponentChoice, ...]:
        """Every component of the stage, in the order of the sections."""
        single = (
            self.algorithm,
            self.backend,
            self.generator,
            self.rollout,
            self.environment,
            self.tokenizer,
            self.data,
            self.eval_data,
        )
        return (*(c for c in single if c is not None), *self.rewards, *self.evaluators, *self.loggers)


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        name: the run's name.
        directory: absolute path of the run directory.
        stages: at least one, in order.
        document: plain data that reproduces this config together with ``typed_secrets``; ``${env:…}`` and
            ``${secret:…}`` stay in it.
        multi_stage: whether the config has ``stages:``.
        typed_secrets: the secrets that were typed into the config: ``typed.KEY`` → value, for a file that only the
            owner may read.
        from_environment: key → text that came from ``${env:…}`` and is no secret, to notice a change on resume.
    """

    name: str
    directory: str
    stages: tuple[StageConfig, ...]
    document: Mapping[str, Any]
    multi_stage: bool
    typed_secrets: Mapping[str, str | int | float] = field(default_factory=dict, repr=False)
    from_environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def stage_directory(self, stage: str) -> str:
        """Folder of a stage: the run directory itself, or ``stages/<name>`` in it where there are stages."""
        return stage_directory(self.directory, stage, multi_stage=self.multi_stage)

    def export_directory(self, stage: str) -> str:
        """Folder of the Hugging Face model that a stage exports."""
        return os.path.join(self.stage_directory(stage), "export")

    def to_yaml(self) -> str:
        """The config as YAML; with ``typed_secrets`` in a file next to it, it loads to an equal config anywhere."""
        return dump_yaml(redact(self.document))


def stage_directory(directory: str, stage: str, *, multi_stage: bool) -> str:
    """Folder of ``stage`` in the run directory ``directory``."""
    return os.path.join(directory, "stages", stage) if multi_stage else directory
