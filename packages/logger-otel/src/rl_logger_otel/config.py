"""Config of the OpenTelemetry logger."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from rl_core.config.durations import Duration
from rl_core.config.sections import ComponentConfig


class OtelConfig(ComponentConfig):
    """OTLP over HTTP. What a collector asks for is in OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_HEADERS."""

    endpoint: str | None = Field(
        None,
        description="Address of the collector, without /v1/…; default: OTEL_EXPORTER_OTLP_ENDPOINT, else "
        "http://localhost:4318.",
    )
    service: str = Field("rl", min_length=1, description="The service's name.")
    every: Duration = Field(10.0, description="Time between exports; the newest metrics and all steps since the last.")
    samples: bool = Field(True, description="Add the samples of a step to its trace, as events.")
    most_spans: Annotated[int, Field(ge=1)] = Field(512, description="Spans that are exported before that time.")
    request_timeout: Duration = Field(10.0, description="How long the collector may take for one answer.")
    close_timeout: Duration = Field(
        15.0, description="How long the end of the run waits for the last export; what is left then is lost."
    )
