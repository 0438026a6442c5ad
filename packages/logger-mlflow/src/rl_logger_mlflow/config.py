"""Config of the MLflow logger."""

from __future__ import annotations

from pydantic import Field
from rl_core.config.durations import Duration
from rl_core.config.sections import ComponentConfig


class MlflowConfig(ComponentConfig):
    """An MLflow run, and in it one for every stage where there are several.

    What a server asks for (user, password, token) is in MLflow's own variables, such as MLFLOW_TRACKING_TOKEN.
    """

    tracking_uri: str | None = Field(
        None,
        description="Where MLflow keeps runs: http://host:5000, sqlite:///path.db; default: MLFLOW_TRACKING_URI, else "
        "mlflow.db in the run directory.",
    )
    experiment: str = Field("rl", min_length=1, description="The MLflow experiment; made where there is none.")
    samples_every: int = Field(10, ge=0, description="Steps between tables of samples; 0 for none.")
    export: bool = Field(False, description="Keep the exported model of each stage as an artifact.")
    request_timeout: Duration = Field(10.0, description="How long a server may take for one answer.")
    close_timeout: Duration = Field(
        60.0, description="How long the end of the run waits for the upload; what is left then is lost."
    )
