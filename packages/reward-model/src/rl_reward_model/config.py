"""Config model of the reward."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from rl_core.config.paths import ModelPath
from rl_core.config.problems import Problem
from rl_core.config.sections import RewardConfig, Section
from rl_torch.quant_checks import folder_problems

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


class NormalizeConfig(Section):
    """The reward is ``(score - mean) / std``."""

    mean: float = Field(0.0, description="Score that becomes reward 0.")
    std: float = Field(1.0, gt=0, description="Difference in score that becomes a difference of 1 in reward.")


class ModelRewardConfig(RewardConfig):
    """Score completions with a trained reward model."""

    path: ModelPath = Field(
        description="Folder or hub id of a sequence-classification model with one label, with its tokenizer."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model folder.")
    chat: Literal["prompt", "conversation"] = Field(
        "prompt",
        description="For prompts that are messages: render the prompt and add the completion and the end token, as "
        "reward models of this framework are trained, or render the whole conversation, as most others are.",
    )
    max_tokens: int | None = Field(
        None,
        ge=2,
        description="Longest prompt, completion and end token together; default: the model's learned positions, "
        "where it has such, else no limit.",
    )
    on_long: Literal["error", "truncate_left"] = Field(
        "error", description="What happens to a sample of more than max_tokens: stop, or cut off its beginning."
    )
    batch_tokens: int = Field(
        16384, ge=1, description="Tokens a replica works on at once, padding included; a longer sample goes alone."
    )
    replicas: int = Field(1, ge=1, description="Number of worker processes that hold the model.")
    gpus: float = Field(0.0, ge=0, description="GPUs per replica, besides those of training; 0 scores on CPU.")
    threads: int = Field(1, ge=1, description="CPU threads of a replica.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number format of the model; the score itself is always computed in float32."
    )
    normalize: NormalizeConfig | None = Field(None, description="Shift and scale of the scores; default: as they are.")
    timeout_s: float = Field(
        1800.0, gt=0, description="Longest a replica may take to load the model, or to score its part of a step."
    )

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """What is wrong with a folder that is already there; a hub id is looked at when the run starts."""
        from rl_reward_model.folder import folder_problem, model_problem

        if stage.environment is not None:
            yield Problem(
                "",
                "with an environment the reward model reads the row's prompt and the model's last turn, and nothing of "
                "what was said in between",
                severity="warning",
            )
        # Whether a model's folder is whole, core has looked at.
        found = model_problem(self.path) if os.path.isdir(self.path) else None
        # An earlier stage of the same run may still write its export.
        if os.path.isabs(self.path) and not os.path.isdir(self.path) and os.path.basename(self.path) != "export":
            found = folder_problem(self.path)
        if found is not None:
            yield Problem("path", found.message, found.fix)
        for problem in folder_problems(self.path):
            yield Problem("path", problem.message, problem.fix)
