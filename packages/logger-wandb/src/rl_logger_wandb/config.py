"""Config of the W&B logger."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from rl_core.config.durations import Duration
from rl_core.config.sections import ComponentConfig


class WandbConfig(ComponentConfig):
    """A W&B run for every stage, in one group. The API key is in WANDB_API_KEY or in ~/.netrc (`wandb login`)."""

    project: str = Field("rl", min_length=1, description="The W&B project.")
    entity: str | None = Field(None, description="The W&B user or team; default: that of the API key.")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: write to the run directory only; `wandb sync` uploads it later."
    )
    base_url: str | None = Field(None, description="Address of a W&B server; default: WANDB_BASE_URL, else W&B's own.")
    tags: tuple[str, ...] = Field((), description="Tags of the W&B runs.")
    samples_every: int = Field(10, ge=0, description="Steps between tables of samples; 0 for none.")
    export: bool = Field(False, description="Upload the exported model of each stage as an artifact.")
    init_timeout: Duration = Field(90.0, description="How long one try to reach the server may take.")
    close_timeout: Duration = Field(
        60.0, description="How long the end of the run waits for the upload; what is left then is lost."
    )
