"""What W&B's own files hold afterwards, and what happens where its server does not work."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from rl_core.errors import ConfigError
from rl_logger_wandb.config import WandbConfig
from rl_logger_wandb.logger import WandbLogger
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.suites import LoggerConformance

HERE = Path(__file__).parent


def beside(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wandb_file, wandb_server = beside("wandb_file"), beside("wandb_server")
KEY = "k3y" * 14


class TestPackage(PluginConformance):
    package = "rl-logger-wandb"
    settings: ClassVar = {"wandb": {"mode": "offline"}}


class TestLogger(LoggerConformance):
    component = "wandb"
    fields: ClassVar = {"mode": "offline"}


def command(name, folder, *more):
    return [sys.executable, str(HERE / "wandb_jobs.py"), name, str(folder), *map(str, more)]


def environment(**variables):
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | variables


def job(name, folder, *more, **variables):
    """A job of ``wandb_jobs.py``; what it printed."""
    done = subprocess.run(
        command(name, folder, *more),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(**variables),
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run directory after a run of one stage."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.yaml").write_text("url: https://user:pa55word@host/\n")
    (folder / "samples.jsonl").write_text('{"completion": "https://user:pa55word@host/"}\n')
    picture = (
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    )
    picture += "0def46b80000000049454e44ae426082"
    (folder / "plot.png").write_bytes(bytes.fromhex(picture))
    (folder / "export").mkdir()
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    assert job("whole", folder).stderr == ""
    return folder


def test_metrics_are_over_the_steps_of_the_stage(whole):
    rows = wandb_file.rows(whole)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [(1, 1.0), (2, 0.5)]
    assert {"step": 2, "machines/host-a/cpu_percent": 12.0} in rows
    metrics = {metric.name or metric.glob_name: metric.step_metric for metric in wandb_file.only(whole, "metric")}
    assert metrics["*"] == "step"


def test_the_run_has_its_config_group_and_tags(whole):
    run = wandb_file.only(whole, "run")[0]
    assert (run.display_name, run.run_group, run.job_type, list(run.tags)) == ("demo", "demo", "train", ["tag-a"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {"hub": {"token": "***"}, "steps": 10}.items() <= config.items()


def test_samples_are_a_table(whole):
    (table,) = whole.glob("wandb/*/files/media/table/samples*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["step", "prompt", "completion", "reward"],
        "data": [[1, "1+1=", "curl https://user:***@host/", 1.0]],
    }


def test_pictures_and_files_are_there(whole):
    assert list(whole.glob("wandb/*/files/media/images/plots/plot*.png"))
    assert {path.name for path in whole.glob("wandb/*/files/rl/*")} == {"config.yaml", "samples.jsonl"}
    saved = [file.path for record in wandb_file.only(whole, "files") for file in record.files]
    assert {"rl/config.yaml", "rl/samples.jsonl"} <= set(saved)


def test_the_export_is_an_artifact(whole):
    artifacts = [*wandb_file.only(whole, "artifact")]
    artifacts += [one.log_artifact.artifact for one in wandb_file.only(whole, "request")]
    (model,) = [one for one in artifacts if one.type == "model"]
    assert [entry.path for entry in model.manifest.contents] == ["model.safetensors"]


def test_secrets_are_written_nowhere(whole):
    ours = [path for path in whole.glob("wandb/**/*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in ours)
    assert b"curl https://" in written
    assert b"t0p-s3cret-token" not in written
    assert b"pa55word" not in written


def test_w_and_b_learns_neither_the_command_line_nor_the_output(whole):
    written = b"".join(path.read_bytes() for path in whole.glob("wandb/*/*.wandb"))
    assert b"wandb_jobs.py" not in written
    assert wandb_file.only(whole, "output_raw") == []


def test_stages_are_runs_of_one_group(tmp_path):
    job("stages", tmp_path)
    runs = {run.display_name: (run.run_group, run.job_type) for run in wandb_file.only(tmp_path, "run")}
    assert runs == {"demo/sft": ("demo", "sft"), "demo/grpo": ("demo", "grpo")}
    assert {end.exit_code for end in wandb_file.only(tmp_path, "exit")} == {0, 1}


def test_a_resume_continues_the_same_run_and_shows_what_changed_in_the_config(tmp_path):
    job("resumed", tmp_path, 1, 10)
    job("resumed", tmp_path, 2, 20)
    assert len({run.run_id for run in wandb_file.only(tmp_path, "run")}) == 1
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    (changes,) = tmp_path.glob("wandb/*/files/media/table/config_changes*.json")
    assert json.loads(changes.read_text())["data"] == [["run.steps", "10", "20"]]


def test_without_an_api_key_a_run_does_not_begin(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"there is no API key for https://wandb\.example"):
        WandbLogger(WandbConfig(name="wandb", base_url="https://wandb.example"))


def check_server(folder, address):
    done = job("server", folder, address, WANDB_API_KEY=KEY)
    logged, ended, clock = json.loads(done.stdout.splitlines()[-1])
    assert logged < 6  # W&B waits 12 s for the server
    assert ended < 30  # 3 s, and what a busy machine takes
    assert time.time() - clock < 60  # W&B's own library waits when the process ends
    assert KEY not in done.stderr + done.stdout
    return done


def test_a_server_that_never_answers_holds_neither_the_steps_nor_the_end(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check_server(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_refuses_holds_neither_the_steps_nor_the_end(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    check_server(tmp_path, f"http://127.0.0.1:{port}")


def test_a_server_that_dies_in_the_middle_of_an_answer_holds_neither_the_steps_nor_the_end(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as dying:
        threading.Thread(target=answer_by_half, args=(dying,), daemon=True).start()
        check_server(tmp_path, f"http://127.0.0.1:{dying.getsockname()[1]}")


def answer_by_half(listening):
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        connection.close()


def test_a_server_that_comes_back_gets_the_steps_that_it_missed(tmp_path):
    with wandb_server.serving() as server:
        running = subprocess.Popen(
            command("outage", tmp_path, server.address),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(WANDB_API_KEY=KEY),
        )
        try:
            assert running.stdout.readline() == "logged\n"
            assert server.wait(lambda: server.steps() == [1, 2, 3, 4, 5])
            server.down.set()
            running.stdin.write("\n")
            running.stdin.flush()
            assert running.stdout.readline() == "logged\n"  # and nobody answers
            assert server.wait(lambda: server.turned_away)
            server.down.clear()
            running.communicate("\n", timeout=120)
            assert running.returncode == 0
        finally:
            running.kill()
            running.wait()
        assert server.steps() == list(range(1, 11))


def test_the_plugin_is_light():
    code = "import sys, rl_logger_wandb.plugin, rl_logger_wandb.config\nprint('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
