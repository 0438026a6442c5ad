"""Components of this package: the ``mlflow`` logger."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="mlflow",
            factory="rl_logger_mlflow.logger:MlflowLogger",
            config="rl_logger_mlflow.config:MlflowConfig",
            summary="metrics, samples and artifacts for MLflow",
            imports=(
                "mlflow",
                "sqlalchemy",
                "alembic",
            ),
        )
    ]
