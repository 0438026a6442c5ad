"""Lines: sockets between the driver and workers on its own machine, for the calls of every step.

Ray starts, places and watches workers and carries everything else, and it carries these calls too where a worker is on
another machine. On the same one a call through Ray costs about 5 ms behind 50 ms of work, in which its threads fell
asleep on both sides, and one through a socket about 1 ms.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from rl_core.cluster.parcels import Parcel, pack, receive, send, unpack

_CONNECT_S = 30.0
"""A driver that has asked for a line connects within this time."""


@dataclass(frozen=True)
class Address:
    """Where a worker waits for its driver.

    Attributes:
        place: of the socket.
        secret: what the driver must know.
    """

    place: str
    secret: bytes = field(repr=False)


class LineEnded(Exception):
    """The process at the other end is gone."""


class Raised(Exception):
    """A call raised an exception: ``args`` are that exception and its traceback as text."""


@dataclass(frozen=True, eq=False)
class LineCall:
    """A call under way.

    Attributes:
        actor_id: hex id of the Ray actor that was asked.
        future: its result; fails with :class:`LineEnded` or :class:`Raised`.
    """

    actor_id: str
    future: Future[Any] = field(default_factory=Future)


class Line:
    """The driver's end. Calls are answered in the order in which they were asked, from any thread.

    Raises:
        OSError, EOFError, AuthenticationError: nobody who knows the secret waits at ``address``.
    """

    def __init__(self, address: Address, actor_id: str) -> None:
        self._actor_id = actor_id
        self._connection = Client(address.place, authkey=address.secret)
        self._waiting: deque[LineCall] = deque()
        self._asking = threading.Lock()
        self._ended = False
        threading.Thread(target=self._read, name=f"line to {actor_id}", daemon=True).start()

    def ask(self, method: str, *args: Any) -> LineCall:
        """Have the worker's host call its ``method``."""
        call = LineCall(self._actor_id)
        with self._asking:
            if self._ended:
                call.future.set_exception(LineEnded())
                return call
            parcel = pack((method, args))  # what cannot be sent is raised here, before anything was
            self._waiting.append(call)
            with contextlib.suppress(OSError):  # the reader tells
                send(self._connection, parcel)
        return call

    def close(self) -> None:
        """Hang up; calls under way end with :class:`LineEnded`."""
        with contextlib.suppress(OSError):
            # Wakes the reader, which closes the connection: closing it here would let it read another file's bytes.
            _shut_down(self._connection)

    def _read(self) -> None:
        try:
            while True:
                received = receive(self._connection)
                _settle(self._waiting.popleft().future, received)
        except (EOFError, OSError):
            pass
        finally:
            with self._asking:
                self._ended = True
                self._connection.close()
            while self._waiting:
                self._waiting.popleft().future.set_exception(LineEnded())


def wait_for_driver(connected: Callable[[Connection], None]) -> Address:
    """The worker's end: in the background, hand the driver's connection to ``connected`` once it is there."""
    secret = secrets.token_bytes(32)
    # Linux has names that are no files and vanish with their socket; elsewhere it is a file that only its user reads.
    place = f"\0rl-{secrets.token_hex(16)}" if sys.platform == "linux" else None
    listener = Listener(place, family="AF_UNIX")
    listener._listener._socket.settimeout(_CONNECT_S)  # type: ignore[attr-defined]

    def accept() -> None:
        with listener, contextlib.suppress(OSError, EOFError, AuthenticationError):
            connection = _from_this_user(listener)
            deliver_challenge(connection, secret)
            answer_challenge(connection, secret)
            connected(connection)

    threading.Thread(target=accept, name="waiting for the driver", daemon=True).start()
    return Address(place or str(listener.address), secret)


def _from_this_user(listener: Listener) -> Connection:
    """The first connection of the user whose process this is; others, who could keep it waiting, are refused."""
    while True:
        connection = listener.accept()
        if _user_of(connection) == os.getuid():
            return connection
        connection.close()


def _user_of(connection: Connection) -> int:
    """Who is at the other end, as the kernel says."""
    if sys.platform != "linux":
        return os.getuid()  # nobody else reaches the socket's file
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        _, user, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(user)


def answer(connection: Connection, call: Callable[[str, tuple[Any, ...]], Any]) -> bool:
    """Receive one call, make it, and send what it returns or raises; False where the driver has hung up."""
    try:
        received = receive(connection)
    except (EOFError, OSError):
        return False
    try:
        method, args = unpack(received)
        parcel = pack(("result", call(method, args)))
    except BaseException as error:  # noqa: BLE001 - raised again by whoever waits; the thread goes on after sys.exit()
        parcel = _pack_error(error, traceback.format_exc())
    try:
        send(connection, parcel)
    except OSError:
        return False
    return True


def _pack_error(error: BaseException, text: str) -> Parcel:
    try:
        parcel = pack(("raised", error, text))
        unpack(parcel)  # some can be pickled, and not read again
    except Exception:  # noqa: BLE001 - whatever a plugin's exception raises there
        return pack(("raised", None, text))
    return parcel


def _settle(future: Future[Any], parcel: Parcel) -> None:
    """Give ``future`` the answer, or what became of it."""
    try:
        kind, *answer = unpack(parcel)
    except Exception as error:  # noqa: BLE001 - whatever a class that is not installed here raises
        future.set_exception(Raised(error, traceback.format_exc()))
        return
    if kind == "result":
        future.set_result(answer[0])
    else:
        future.set_exception(Raised(*answer))


def _shut_down(connection: Connection) -> None:
    with socket.socket(fileno=connection.fileno()) as own:
        own.shutdown(socket.SHUT_RDWR)
        own.detach()
