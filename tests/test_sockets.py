"""The reader of listening sockets, which the tests of exposure stand on."""

import os
import socket

import pytest
import sockets


@pytest.mark.parametrize(
    ("family", "address", "open_to_others"),
    [
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET, "127.0.0.2", False),
        (socket.AF_INET, "0.0.0.0", True),
        (socket.AF_INET6, "::1", False),
        (socket.AF_INET6, "::", True),
    ],
)
def test_a_listening_socket_is_found_with_the_address_it_is_bound_to(family, address, open_to_others):
    listener = socket.socket(family)
    try:
        listener.bind((address, 0))
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with listener:
        port = listener.getsockname()[1]
        assert not any(found.port == port for found in sockets.listening([os.getpid()]))  # bound, but not listening
        listener.listen()
        assert (os.getpid(), address, port) in sockets.listening([os.getpid()])
        assert ((os.getpid(), address, port) in sockets.exposed([os.getpid()])) is open_to_others
    assert not any(found.port == port for found in sockets.listening([os.getpid()]))


def test_a_process_that_is_gone_listens_on_nothing():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert sockets.listening([pid]) == [] == sockets.tree(pid)
