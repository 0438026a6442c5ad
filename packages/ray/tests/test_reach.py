"""An address where no Ray cluster answers ends the wait in time."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from rl_ray.errors import RayProblem
from rl_ray.reach import wait_for_answer


@pytest.fixture
def listening():
    """Start a server that answers every connection with ``answer`` (None: not at all); returns its address."""
    servers = []

    def start(answer: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                servers.append(connection)
                if answer is not None:
                    connection.recv(1024)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def refusal(address: str, within_s: float = 0.3) -> str:
    started = time.monotonic()
    with pytest.raises(RayProblem) as caught:
        wait_for_answer(address, within_s=within_s)
    assert time.monotonic() - started < within_s + 5
    return str(caught.value).splitlines()[0]


def test_a_port_where_nothing_listens(listening):
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    server.close()
    assert refusal(address) == (
        f"no Ray cluster answered at '{address}' (run.address or RAY_ADDRESS) for 0.3 s (run.start_timeout_s): "
        "Connection refused"
    )


def test_a_server_that_says_nothing(listening):
    assert refusal(listening(None)).endswith("timed out")


def test_a_server_that_is_no_ray_cluster(listening):
    assert refusal(listening(b"HTTP/1.1 400 Bad Request\r\n\r\n")).endswith("what listens there is no Ray cluster")


def test_a_name_that_is_no_host():
    assert "no Ray cluster answered at 'no-such-host.invalid:6379'" in refusal("no-such-host.invalid:6379")
    assert "no Ray cluster answered at '127.0.0.1:99999'" in refusal("127.0.0.1:99999")


def test_a_ray_cluster_is_answered_at_once(cluster):
    wait_for_answer(cluster, within_s=30)


def test_a_cluster_that_starts_meanwhile_is_waited_for(listening):
    settings = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    address = listening(None)
    port = int(address.rpartition(":")[2])
    late = socket.create_server(("127.0.0.2", port))
    late.close()
    threading.Timer(0.5, lambda: _serve_once(("127.0.0.2", port), settings)).start()
    wait_for_answer(f"127.0.0.2:{port}", within_s=30)


def _serve_once(place: tuple[str, int], answer: bytes) -> None:
    with socket.create_server(place) as server:
        connection, _ = server.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(answer)


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001"])
def test_other_forms_of_address_are_rays(address):
    wait_for_answer(address, within_s=0.1)
