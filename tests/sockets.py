"""Which TCP sockets processes listen on, read from /proc: Linux only, and no tool needs to be installed."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

_LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h


class Listening(NamedTuple):
    """A socket that waits for connections; ``address`` is an IPv4 or IPv6 address, ``0.0.0.0`` and ``::`` are all."""

    pid: int
    address: str
    port: int


def listening(pids: Iterable[int]) -> list[Listening]:
    """The listening TCP sockets of the processes, each in its own network namespace, sorted.

    Processes that are gone have none. A process whose descriptors may not be read raises PermissionError.
    """
    return sorted({socket for pid in pids for socket in _of(pid)})


def tree(pid: int) -> list[int]:
    """A process and all that descend from it now."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address: 127.0.0.0/8, ::1, or an IPv4 one of these written as IPv6."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def exposed(pids: Iterable[int]) -> list[Listening]:
    """The listening sockets that are not on the loopback interface."""
    return [socket for socket in listening(pids) if not is_loopback(socket.address)]


def _of(pid: int) -> list[Listening]:
    try:
        inodes = _socket_inodes(pid)
        tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
        lines = [line for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = []
    for fields in map(str.split, lines):
        if fields[3] == _LISTEN and fields[9] in inodes:
            address, port = fields[1].split(":")
            found.append(Listening(pid, _address(address), int(port, 16)))
    return found


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except FileNotFoundError:
            continue  # closed meanwhile
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            inodes.add(match[1])
    return inodes


def _address(hexadecimal: str) -> str:
    """The kernel prints an address as 32-bit words in the machine's byte order."""
    words = [bytes.fromhex(hexadecimal[start : start + 8]) for start in range(0, len(hexadecimal), 8)]
    parsed = ipaddress.ip_address(b"".join(int.from_bytes(word, "big").to_bytes(4, sys.byteorder) for word in words))
    mapped = getattr(parsed, "ipv4_mapped", None)
    return f"::ffff:{mapped}" if mapped else str(parsed)
