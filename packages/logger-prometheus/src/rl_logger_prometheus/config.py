"""Config of the Prometheus logger."""

from __future__ import annotations

from pydantic import Field
from rl_core.config.sections import ComponentConfig


class PrometheusConfig(ComponentConfig):
    """An HTTP endpoint in the driver, for as long as the run lasts."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Nothing is authenticated or encrypted: others than loopback show the run's "
        "metrics, samples and pictures to everyone who can reach the port.",
    )
    port: int = Field(9400, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    page: bool = Field(True, description="Show samples and pictures at the same address, for people.")
