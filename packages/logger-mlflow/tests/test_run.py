"""A real run with the logger, and its resume, read back by MLflow."""

import socket

import pytest
from mlflow import MlflowClient
from rl_plugin_kit.tiny_run import check_tiny_run

pytestmark = pytest.mark.slow


def test_a_run_and_its_resume_are_one_mlflow_run_with_the_load_of_the_machine(cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fields = {"name": "mlflow"}
    check_tiny_run("logger 'mlflow'", "logger", fields, {"run": {"measure_machines_every": 0.01}}, tmp_path)
    for folder, steps in (("straight", [1, 2]), ("stopped", [1, 2, 2])):
        client = MlflowClient(f"sqlite:///{tmp_path}/{folder}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("rl").experiment_id])
        assert run.info.status == "FINISHED"
        assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "train/loss")) == steps
        assert 0 <= run.data.metrics[f"system/{socket.gethostname()}/cpu_percent"] <= 100
        assert "config.yaml" in {one.path for one in client.list_artifacts(run.info.run_id)}
