import socket

from rl_ray import ports
from rl_ray.ports import free_port


def test_ports_are_free_and_not_those_of_outgoing_connections():
    for _ in range(20):
        port = free_port()
        assert 24_000 <= port <= 32_000
        with socket.socket() as listener:
            listener.bind(("", port))


def test_a_port_in_use_is_passed_over(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setattr(ports, "_FIRST", taken)
        monkeypatch.setattr(ports, "_LAST", taken)
        assert free_port() != taken
