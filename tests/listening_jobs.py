"""What ranks do in tests of the sockets they open: a module that they can import."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import replace

import sockets
import torch
import torch.distributed as dist
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.discovery.references import resolve_reference

SPEC = ModelSpec(
    init={"architecture": "qwen2", "hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 16},
    vocab_size=16,
    max_length=16,
)
NOBODY = "65534"

_COUNT_KEYS = struct.pack("<BIB", 0, 0x3C85F7CE, 7)
"""What a client of torch's TCPStore says first, and its question how many keys there are (TCPStoreBackend.hpp)."""

_ASKING = f"""
import os, socket, sys
for address, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    said = b""
    for message in (b"", os.urandom(4096), {_COUNT_KEYS!r}):
        with socket.create_connection((address, port), timeout=5) as line:
            line.settimeout(0.3)
            try:
                line.sendall(message)
                said += line.recv(4096)
            except (TimeoutError, ConnectionError):
                pass
    print(said.hex() or "nothing")
"""


def opened_by(rank, world, port, *, backend, config, place=None, ask=False):
    """The sockets that a backend opens, what another user is told there, and whether the group works afterwards."""
    before = set(sockets.listening([os.getpid()]))
    made = resolve_reference(backend)(config)
    context = WorkerContext(rank, world, "127.0.0.1", port)
    made.setup(context if place is None else replace(context, rendezvous=place))
    try:
        made.load(Role("policy", trainable=True), SPEC, OptimizerSpec(1e-3))
        opened = sorted(set(sockets.listening([os.getpid()])) - before)
        told = ask_as_another_user(opened) if ask else None
        total = torch.ones(1)
        dist.all_reduce(total)
        return {"opened": [(address, port) for _, address, port in opened], "told": told, "sum": total.item()}
    finally:
        made.close()


def ask_as_another_user(found):
    """What another user of this machine is told on each of the sockets, in hexadecimal digits."""
    where = [str(part) for _, address, port in found for part in (address, port)]
    become = ["setpriv", "--reuid", NOBODY, "--clear-groups", sys.executable, "-I", "-S"]
    done = subprocess.run([*become, "-c", _ASKING, *where], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
