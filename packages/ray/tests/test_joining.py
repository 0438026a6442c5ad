import importlib.util
import subprocess
import sys

import pytest
from rl_ray import joining
from rl_ray.errors import RayProblem
from rl_ray.joining import check_client, initialise


def test_a_client_address_without_the_client_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RayProblem) as caught:
        check_client("ray://head:10001")
    assert str(caught.value) == (
        "the address 'ray://head:10001' (run.address or RAY_ADDRESS) needs Ray's client, which is not installed\n"
        "    pip install 'ray[client]'"
    )
    check_client("head:6379")


def test_a_client_server_that_fails_to_start_is_asked_again(monkeypatch, caplog):
    answers = [ConnectionError("no server"), ConnectionError("no server"), None]

    def init(**options):
        answer = answers.pop(0)
        if answer:
            raise answer

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(joining, "CLIENT_PAUSE_S", 0.0)
    initialise({}, "ray://head:10001", patience_s=60)
    assert answers == []
    assert caplog.messages == ["joining the Ray cluster at ray://head:10001 failed, trying again: no server"] * 2


@pytest.mark.parametrize(("address", "attempts"), [("ray://head:10001", 3), ("head:6379", 1)])
def test_a_cluster_that_cannot_be_joined_says_how_to_check(address, attempts, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        raise ConnectionError("no server")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(joining, "CLIENT_PAUSE_S", 0.0)
    with pytest.raises(RayProblem) as caught:
        initialise({}, address, patience_s=60)
    assert len(calls) == attempts
    assert str(caught.value) == (
        f"could not join the Ray cluster at {address!r} (run.address or RAY_ADDRESS): no server\n"
        f"    check with: ray status --address {address}"
    )


SILENT_SERVER = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
import grpc

class Silent(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: threading.Event().wait())

server = grpc.server(ThreadPoolExecutor(4), handlers=[Silent()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
time.sleep(600)
"""
JOIN = """
import logging
import sys
from rl_ray.errors import RayProblem
from rl_ray.joining import initialise
try:
    options = {"address": sys.argv[1], "log_to_driver": False, "logging_level": logging.ERROR}
    initialise(options, sys.argv[1], patience_s=1.5)
except RayProblem as error:
    sys.exit(str(error))
"""


def test_a_cluster_that_never_answers_its_client_ends_the_wait_and_the_process():
    with subprocess.Popen([sys.executable, "-c", SILENT_SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            address = f"ray://127.0.0.1:{server.stdout.readline().strip()}"
            done = subprocess.run(
                [sys.executable, "-c", JOIN, address], capture_output=True, text=True, timeout=300, check=False
            )
        finally:
            server.kill()
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"the Ray cluster at '{address}' (run.address or RAY_ADDRESS) has not let this client in for 1.5 s "
        "(run.start_timeout_s); the server that it starts for a client may have died\n"
        "    run the same command again; why it died is on the head node, in "
        "/tmp/ray/session_latest/logs/ray_client_server*.err\n"
    )
