"""What MLflow's own client finds afterwards, and what happens where a server is away."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from rl_core.contracts.logger import RunInfo
from rl_core.training.logger_group import LoggerGroup
from rl_core.training.logger_queue import LoggerQueue
from rl_logger_mlflow.config import MlflowConfig
from rl_logger_mlflow.logger import MlflowLogger
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.suites import LoggerConformance

SECRET = "t0p-s3cret-token"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


class TestPackage(PluginConformance):
    package = "rl-logger-mlflow"


class TestLogger(LoggerConformance):
    component = "mlflow"


def build(**fields):
    return MlflowLogger(MlflowConfig(name="mlflow", **fields))


def info(folder, *, stage="train", stages=("train",), first=1, config=None):
    return RunInfo("demo", str(folder), stage, stages, 10, first, config or {"hub": {"token": SECRET}, "steps": 10})


def runs(folder):
    """Run name → run, read back by MLflow."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("rl")
    return client, {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def history(client, run, name):
    return [(m.step, m.value) for m in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)]


def artifacts(run):
    top = Path(urlsplit(run.info.artifact_uri).path)
    return {str(path.relative_to(top)): path for path in top.rglob("*") if path.is_file()}


def test_a_run_is_there_with_metrics_parameters_samples_pictures_and_files(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 10\n")
    (tmp_path / "plot.png").write_bytes(b"\x89PNG picture")
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.safetensors").write_bytes(b"weights")
    logger = build(export=True)
    logger.start(info(tmp_path))
    for step in (1, 2):
        logger.log(step, {"train/loss": 1.0 / step})
        logger.log_samples(step, [{"prompt": "1+1=", "completion": "2", "reward": 1.0}])
    logger.log_machines(2, {"host-a": {"cpu_percent": 12.0}})
    logger.ended("finished")
    logger.close()
    client, found = runs(tmp_path)
    run = found["demo"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"hub.token": "***", "steps": "10"}
    assert history(client, run, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert history(client, run, "system/host-a/cpu_percent") == [(2, 12.0)]
    kept = artifacts(run)
    assert set(kept) == {
        *("config.yaml", "samples.jsonl", "samples/step-000001.json", "plots/plot.png", "export/model.safetensors"),
    }
    table = json.loads(kept["samples/step-000001.json"].read_text())
    assert table == {"columns": ["step", "prompt", "completion", "reward"], "data": [[1, "1+1=", "2", 1.0]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "samples/step-000001.json", "type": "table"}
    ]


def test_mlflow_itself_reads_the_samples_as_a_table(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    logger = build()
    logger.start(info(tmp_path))
    logger.log_samples(1, [{"prompt": "1+1=", "reward": 1.0}])
    logger.close()
    client, found = runs(tmp_path)
    experiment = found["demo"].info.experiment_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")  # that method looks nowhere else
    table = client.load_table(experiment, "samples/step-000001.json", [found["demo"].info.run_id])
    assert table.to_dict("records") == [{"step": 1, "prompt": "1+1=", "reward": 1.0}]


def test_a_run_that_was_killed_while_mlflow_made_its_tables_is_resumed(tmp_path):
    killed = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    half = tmp_path / "mlflow.db.new"
    while not (half.exists() and half.stat().st_size):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    logger = build()
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 0.5})
    logger.close()
    client, found = runs(tmp_path)
    assert history(client, found["demo"], "train/loss") == [(1, 0.5)]
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_stages_are_runs_within_the_run(tmp_path):
    logger = build()
    for stage in ("sft", "grpo"):
        logger.start(info(tmp_path, stage=stage, stages=("sft", "grpo")))
        logger.log(1, {"train/loss": 0.5})
    logger.ended("failed")
    logger.close()
    client, found = runs(tmp_path)
    assert {name: run.info.status for name, run in found.items()} == {
        "demo": "FAILED",
        "sft": "FINISHED",
        "grpo": "FAILED",
    }
    parents = {found[name].data.tags["mlflow.parentRunId"] for name in ("sft", "grpo")}
    assert parents == {found["demo"].info.run_id}
    assert history(client, found["grpo"], "train/loss") == [(1, 0.5)]


def test_a_resume_continues_the_same_run_and_says_what_changed_in_the_config(tmp_path):
    for first, steps in ((1, 10), (3, 20)):
        logger = build()
        logger.start(info(tmp_path, first=first, config={"run": {"steps": steps}}))
        for step in (first, first + 1):
            logger.log(step, {"train/loss": float(step)})
        logger.ended("interrupted" if first == 1 else "finished")
        logger.close()
    client, found = runs(tmp_path)
    (run,) = found.values()
    assert history(client, run, "train/loss") == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert run.data.params == {"run.steps": "10"}
    assert run.data.tags["config_changed.run.steps"] == "10 → 20"
    changes = json.loads(artifacts(run)["config_changes.json"].read_text())
    assert changes == {"run.steps": {"before": 10, "after": 20}}
    assert run.info.status == "FINISHED"


def test_secrets_are_kept_nowhere(tmp_path):
    (tmp_path / "config.yaml").write_text("url: https://user:pa55word@host/\n")
    (tmp_path / "samples.jsonl").write_text('{"completion": "https://user:pa55word@host/"}\n')
    logger = build()
    logger.start(info(tmp_path))
    logger.log_samples(1, [{"completion": "curl https://user:pa55word@host/"}])
    logger.close()
    written = b"".join(p.read_bytes() for p in [*tmp_path.glob("mlflow.db*"), *tmp_path.glob("mlartifacts/**/*.*")])
    assert b"curl https://" in written
    assert b"hub.token" in written
    assert SECRET.encode() not in written
    assert b"pa55word" not in written


class Server:
    """The part of MLflow's REST interface that is used, on a store of its own."""

    def __init__(self, folder, port=0):
        client = MlflowClient(f"sqlite:///{folder}/server.db")
        self.client, self.asked = client, []
        asked = self.asked

        def answer(path, body):
            from mlflow.entities import Metric, Param, RunTag

            if path == "experiments/get-by-name":
                found = client.get_experiment_by_name("rl")
                return {"experiment": {"experiment_id": found.experiment_id, "name": "rl"}} if found else None
            if path == "experiments/create":
                return {"experiment_id": client.create_experiment("rl", f"file://{folder}/server-artifacts")}
            if path == "runs/create":
                run = client.create_run(body["experiment_id"], run_name=body["run_name"])
                return {"run": {"info": facts(run), "data": {}}}
            if path == "runs/log-batch":
                client.log_batch(
                    body["run_id"],
                    [Metric(m["key"], m["value"], m["timestamp"], m["step"]) for m in body.get("metrics", ())],
                    [Param(p["key"], p["value"]) for p in body.get("params", ())],
                    [RunTag(t["key"], t["value"]) for t in body.get("tags", ())],
                )
                return {}
            run = client.get_run(body["run_id"])
            if path == "runs/update":
                client.set_terminated(body["run_id"], body["status"])
                return {"run_info": facts(run)}
            return {"run": {"info": facts(run), "data": {}}}

        def facts(run):
            given = run.info
            return {"run_id": given.run_id, "experiment_id": given.experiment_id, "artifact_uri": given.artifact_uri}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                at = urlsplit(self.path)
                query = dict(part.split("=") for part in at.query.split("&") if part)
                asked.append(at.path)
                found = answer(at.path.partition("/mlflow/")[2], json.loads(body) if body else query)
                missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(missing if found is None else found).encode())

            do_GET = do_PATCH = do_POST

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server.server_port

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def queued(address, folder, **fields):
    one = build(tracking_uri=address, **fields)
    return LoggerGroup([("mlflow", LoggerQueue("mlflow", one, first_retry_s=0.05))])


def test_a_server_that_comes_up_later_receives_every_step(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loggers = queued(f"http://127.0.0.1:{port}", tmp_path)
    began = time.monotonic()
    loggers.start(info(tmp_path))
    for step in range(1, 6):
        loggers.log(step, {"train/loss": float(step)})
    assert time.monotonic() - began < 1
    while not caplog.messages:
        assert time.monotonic() - began < 30
        time.sleep(0.01)
    server = Server(tmp_path, port)
    loggers.close()
    server.close()
    (run,) = server.client.search_runs([server.client.get_experiment_by_name("rl").experiment_id])
    assert history(server.client, run, "train/loss") == [(step, float(step)) for step in range(1, 6)]
    assert run.info.status == "FINISHED"
    said = [message for message in caplog.messages if message.startswith("logger 'mlflow'")]
    assert len(said) == 1
    assert said[0].startswith("logger 'mlflow' failed and is tried again: ConnectionError: ")


def test_a_server_that_dies_holds_nothing_up(tmp_path):
    server = Server(tmp_path)
    loggers = queued(f"http://127.0.0.1:{server.port}", tmp_path, close_timeout=2.0)
    loggers.start(info(tmp_path))
    loggers.log(1, {"train/loss": 0.5})
    while sum("log-batch" in path for path in server.asked) < 2:  # the parameters, then the first step
        time.sleep(0.01)
    server.close()
    began = time.monotonic()
    for step in range(2, 100):
        loggers.log(step, {"train/loss": 0.5})
    assert time.monotonic() - began < 1
    loggers.close()
    assert time.monotonic() - began < 10


def test_a_server_that_never_answers_holds_nothing_up(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loggers = queued(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, close_timeout=2.0)
        began = time.monotonic()
        loggers.start(info(tmp_path))
        for step in range(1, 100):
            loggers.log(step, {"train/loss": 0.5})
        assert time.monotonic() - began < 1
        loggers.close()
        assert time.monotonic() - began < 10
    assert "calls are lost" in caplog.messages[-1]


def test_the_plugin_is_light():
    code = "import sys, rl_logger_mlflow.plugin, rl_logger_mlflow.config\nprint('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


if __name__ == "__main__":
    build().start(info(sys.argv[1]))
