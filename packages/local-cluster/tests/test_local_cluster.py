"""The record of the local cluster: whatever it holds, nothing but that cluster is ended and removed."""

import json
import os
import socket
import subprocess
import sys

import pytest
from rl_core.errors import EnvironmentProblem
from rl_local_cluster import local as local_cluster
from rl_ray import head


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "state" / "rl" / f"cluster-{socket.gethostname()}.json"
    file.parent.mkdir(parents=True)
    return file


def recorded(folder, pid=1, address="127.0.0.1:1"):
    return json.dumps({"address": address, "folder": str(folder), "pid": pid, "started": 0.0})


def test_a_record_that_names_another_folder_removes_nothing(record, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    record.write_text(recorded(precious))
    assert local_cluster.stop() is None
    assert precious.is_dir()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", json.dumps({"address": 5, "folder": 7, "pid": "x", "started": None})]
)
def test_a_record_of_something_else_is_no_cluster(text, record):
    record.write_text(text)
    assert local_cluster.find() is None
    assert local_cluster.stop() is None


def test_a_pipe_in_its_place_is_not_waited_for(record):
    os.mkfifo(record)
    assert local_cluster.find() is None


def test_a_record_that_cannot_be_read_is_an_error_and_not_the_absence_of_a_cluster(record):
    record.mkdir()
    with pytest.raises(EnvironmentProblem, match="cannot be read: Is a directory"):
        local_cluster.find()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # nobody's
    with pytest.raises(EnvironmentProblem, match="set HOME or XDG_STATE_HOME"):
        local_cluster.find()


@pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environments")
def test_a_cluster_whose_start_was_killed_is_ended(record, tmp_path):
    folder = tmp_path / "rl-ray-x"
    folder.mkdir()
    program = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(folder / head.TOKEN)}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, start_new_session=True) as left:
        try:
            left.stdout.read(1)
            record.write_text(recorded(folder, left.pid, address=""))
            assert local_cluster.find() is None
            local_cluster.stop()
            assert left.wait(10) < 0
        finally:
            left.kill()
    assert not folder.exists()
    assert not record.exists()
