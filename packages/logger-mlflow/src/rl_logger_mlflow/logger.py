"""Logs to MLflow by its client: no global state, no server needed."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from rl_core.contracts.logger import RunInfo
from rl_tracker_common.config import Scalar, flat_config
from rl_tracker_common.files import export_folder, pictures, text_without_secrets
from rl_tracker_common.memory import TrackerMemory
from rl_tracker_common.samples import sample_table

if TYPE_CHECKING:
    from rl_logger_mlflow.config import MlflowConfig

_STATUSES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_REFUSED = re.compile(r"[^A-Za-z0-9_\-. :/]")
_MOST_PARAMS = 100
_MOST_METRICS = 1000
_LONGEST = 6000
_MOST_TABLES = 20
"""Tables of samples that MLflow's page of a run shows, the newest; all are among the artifacts."""
_WHOLE = ""
"""The name under which the id of the run around the stages is remembered."""


class MlflowLogger:
    """Metrics by step, the config as parameters, samples as tables, pictures and files as artifacts.

    A resumed run continues its MLflow runs. MLflow does not let parameters change: new values are tags
    ``config_changed.NAME`` and the artifact ``config_changes.json``.
    """

    def __init__(self, config: MlflowConfig) -> None:
        self.config = config
        self.close_timeout_s = config.close_timeout
        self._client: MlflowClient | None = None
        self._info: RunInfo | None = None
        self._id = self._whole = ""
        self._tables: list[dict[str, str]] = []
        self._status = "finished"
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its tables
        # MLflow takes them from nowhere else, and would try for minutes where the queue tries again by itself.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(math.ceil(config.request_timeout)))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def start(self, info: RunInfo) -> None:
        """Raises ConnectionError where the server does not answer."""
        with _unreachable():
            if self._info is not None and self._info.stage == info.stage:
                self._info = info  # workers were started again
                return
            self._end_stage("finished")
            memory, config = TrackerMemory(info.directory, "mlflow"), flat_config(info.config)
            uri = self.config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
            self._client = client = MlflowClient(uri or _database(Path(info.directory).resolve() / "mlflow.db"))
            experiment = self._experiment(client, None if uri else Path(info.directory).resolve() / "mlartifacts")
            nested = len(info.stages) > 1
            if nested and not self._whole:
                self._whole = self._run(memory, _WHOLE, experiment, info.run, {})
            tags = {"rl.stage": info.stage, "rl.run": info.run}
            tags |= {"mlflow.parentRunId": self._whole} if nested else {}
            changes = memory.changes(info.stage, config)
            known = memory.id_of(info.stage)
            self._id = self._run(memory, info.stage, experiment, info.stage if nested else info.run, tags, config)
            if known is None:
                params = [Param(_name(key), str(value)[:_LONGEST]) for key, value in config.items()]
                for some in _parts(params, _MOST_PARAMS):
                    client.log_batch(self._id, params=some)
            if changes:
                tags = {_name(f"config_changed.{one.name}"): str(one)[:_LONGEST] for one in changes}
                client.log_batch(self._id, tags=[RunTag(*tag) for tag in tags.items()])
                document = {one.name: {"before": one.before, "after": one.after} for one in changes}
                client.log_text(self._id, json.dumps(document, indent=2, ensure_ascii=False), "config_changes.json")
            self._info, self._tables = info, []
            self._log_config()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._log(step, metrics)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        every = self.config.samples_every
        if self._client is None or not every or not rows or (step % every and step != 1):
            return
        columns, data = sample_table(step, rows)
        path = f"samples/step-{step:06d}.json"
        with _unreachable():
            self._client.log_text(self._id, json.dumps({"columns": columns, "data": data}, ensure_ascii=False), path)
            self._tables = [*self._tables, {"path": path, "type": "table"}][-_MOST_TABLES:]
            self._client.set_tag(self._id, "mlflow.loggedArtifacts", json.dumps(self._tables))

    def log_machines(self, step: int, machines: Mapping[str, Mapping[str, float]]) -> None:
        """``system/HOST/cpu_percent`` and so on, which MLflow shows as system metrics."""
        self._log(step, {f"system/{host}/{n}": v for host, found in machines.items() for n, v in found.items()})

    def ended(self, status: str) -> None:
        self._status = status

    def close(self) -> None:
        """Raises ConnectionError where the server does not answer."""
        with _unreachable():
            self._end_stage(self._status)
            if self._client is not None and self._whole:
                self._client.set_terminated(self._whole, _STATUSES.get(self._status, "FAILED"))
            self._client, self._whole = None, ""

    def _experiment(self, client: MlflowClient, artifacts: Path | None) -> str:
        found = client.get_experiment_by_name(self.config.experiment)
        if found is not None:
            return found.experiment_id
        try:
            location = None if artifacts is None else artifacts.as_uri()
            return client.create_experiment(self.config.experiment, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(self.config.experiment)  # another run was quicker
            if found is None:
                raise
            return found.experiment_id

    def _run(
        self,
        memory: TrackerMemory,
        key: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Scalar] | None = None,
    ) -> str:
        """The id of the run that is remembered, or of a new one."""
        assert self._client is not None
        known = memory.id_of(key)
        if known is None:
            known = self._client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
        else:
            self._client.update_run(known, status="RUNNING")
        memory.remember(key, id=known, config=config or {})
        return known

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._client is None:
            return
        now = int(time.time() * 1000)
        rows = [Metric(_name(name), float(value), now, step) for name, value in metrics.items()]
        with _unreachable():
            for some in _parts(rows, _MOST_METRICS):
                self._client.log_batch(self._id, metrics=some)

    def _log_config(self) -> None:
        if self._client is not None and self._info is not None:
            text = text_without_secrets(Path(self._info.directory) / "config.yaml")
            if text is not None:
                self._client.log_text(self._id, text, "config.yaml")

    def _end_stage(self, status: str) -> None:
        client, info = self._client, self._info
        if client is None or info is None:
            return
        for path in pictures(info.directory):
            client.log_artifact(self._id, str(path), "plots")
        text = text_without_secrets(Path(info.directory) / "samples.jsonl")
        if text is not None:
            client.log_text(self._id, text, "samples.jsonl")
        export = export_folder(info.directory, info.stage) if self.config.export else None
        if export is not None:
            client.log_artifacts(self._id, str(export), "export")
        client.set_terminated(self._id, _STATUSES.get(status, "FAILED"))
        self._info = None


@contextmanager
def _unreachable() -> Iterator[None]:
    """MLflow's error for a server that does not answer as ConnectionError: the call is made again later."""
    try:
        yield
    except MlflowException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, requests.RequestException):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise ConnectionError(str(error)) from error


def _database(path: Path) -> str:
    """The address of a SQLite file, made where there is none: whole or not at all.

    MLflow takes seconds to make its tables one by one, and cannot go on where a run was killed meanwhile.
    """
    if not path.exists():
        new = path.with_name(f"{path.name}.new")
        for left in path.parent.glob(f"{new.name}*"):
            left.unlink()
        MlflowClient(f"sqlite:///{new}")
        os.replace(new, path)
    return f"sqlite:///{path}"


def _parts(items: list[Any], most: int) -> Iterator[list[Any]]:
    """One after the other, ``most`` at a time: what MLflow takes in one call."""
    yield from (items[at : at + most] for at in range(0, len(items), most))


def _name(text: str) -> str:
    """A name that MLflow takes, of at most 250 characters."""
    return _REFUSED.sub("_", text)[:250]
