"""Network interfaces of this machine, and the one that process groups use.

gloo, NCCL and the stores of ``torch.distributed`` authenticate nobody: whoever reaches their sockets takes part. So
every process of a run keeps them on one interface: loopback where there is one machine, else the cluster's.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing

import psutil

from rl_core.errors import EnvironmentProblem

LOOPBACK = "loopback"
"""Stands for the loopback interface, which systems name differently, where an interface is chosen."""

_SOCKETS_OF = {"GLOO_SOCKET_IFNAME": "", "NCCL_SOCKET_IFNAME": "="}
"""Variables that gloo and NCCL read, and what goes before a name: without ``=`` NCCL takes ``eth1`` for ``eth10``."""

_set_here: dict[str, str] = {}


def interfaces() -> dict[str, list[str]]:
    """Names of the interfaces that have an address → their addresses, IPv4 first; link-local ones are left out."""
    found: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        for family in (socket.AF_INET, socket.AF_INET6):
            addresses = [entry.address for entry in entries if entry.family == family]
            usable = [a for a in addresses if "%" not in a and not ipaddress.ip_address(a).is_link_local]
            if usable:
                found.setdefault(name, []).extend(usable)
    return found


def describe(found: Mapping[str, Sequence[str]] | None = None) -> str:
    """All interfaces with their first address, for messages: ``eth0 (10.0.0.5), lo (127.0.0.1)``."""
    known = interfaces() if found is None else found
    return ", ".join(f"{name} ({addresses[0]})" for name, addresses in sorted(known.items())) or "none"


def interface_with(address: str) -> str | None:
    """The interface that has ``address``; every address of 127.0.0.0/8 is loopback's. None where no one has it."""
    wanted = ipaddress.ip_address(address)
    for name, addresses in interfaces().items():
        parsed = [ipaddress.ip_address(own) for own in addresses]
        if wanted in parsed or (wanted.is_loopback and any(own.is_loopback for own in parsed)):
            return name
    return None


def interface_towards(host: str) -> str | None:
    """The interface through which this machine reaches ``host`` (a name or an address); sends nothing."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.connect(where)
            return interface_with(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None


def chosen(interface: str | None, *, otherwise: str) -> tuple[str, str]:
    """Name and address of the interface that a process uses.

    Args:
        interface: its name, :data:`LOOPBACK`, or None for the one that has the address ``otherwise``.
        otherwise: this machine's address in the cluster.

    Raises:
        EnvironmentProblem: this machine has no such interface; lists those that it has.
    """
    found = interfaces()
    if interface == LOOPBACK:
        otherwise, interface = "127.0.0.1", interface_with("127.0.0.1")
    elif interface is None:
        interface = interface_with(otherwise)
    if interface is None:
        raise EnvironmentProblem(
            f"no network interface of the machine {socket.gethostname()} has the address {otherwise}, by which Ray "
            f"knows it\n    set run.network_interface to one of: {describe(found)}"
        )
    if interface not in found:
        raise EnvironmentProblem(
            f"the machine {socket.gethostname()} has no network interface {interface!r} (run.network_interface)\n"
            f"    it has: {describe(found)}"
        )
    addresses = found[interface]
    return interface, otherwise if otherwise in addresses else addresses[0]


def use_interface(name: str, *, instead: bool = True) -> None:
    """Have the process groups that this process makes from now on listen on one interface only.

    gloo looks at each group it makes, NCCL once in a process.

    Args:
        instead: replace what the environment says already; without it, the user's own ``GLOO_SOCKET_IFNAME`` and
            ``NCCL_SOCKET_IFNAME`` stay, which machines with several network cards may need.
    """
    for variable, mark in _SOCKETS_OF.items():
        given = os.environ.get(variable)
        if given is None or instead or given == _set_here.get(variable):
            os.environ[variable] = _set_here[variable] = mark + name


def held_socket(address: str) -> socket.socket:
    """A TCP socket bound to a free port of ``address``, which nobody else is given while it is open.

    It does not listen. Whoever serves there takes it over, or binds the same port (with ``SO_REUSEADDR``, as
    ``torch.distributed`` does) in its place.
    """
    return bound_socket(address, 0)


def bound_socket(address: str, port: int) -> socket.socket:
    """A TCP socket bound to ``address`` (or a name that stands for one of this machine's) and to no other address."""
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError:
        bound.close()
        raise
    return bound
