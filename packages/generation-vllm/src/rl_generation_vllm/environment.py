"""Settings of a process before vLLM is imported, and changes by vLLM that are undone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rl_core.network import LOOPBACK, chosen, use_interface

_PRELOAD = "LD_PRELOAD"

# What vLLM says about every update, start or missing chat template although all is well.
_NOISE = {
    "vllm.model_executor.model_loader.reload.layerwise": logging.ERROR,
    "vllm.v1.core.block_pool": logging.WARNING,
    "vllm.v1.worker.cpu_worker": logging.ERROR,
    "vllm.renderers.base": logging.ERROR,
}


def prepare(device: str) -> None:
    """Set the environment variables that vLLM and torch read when they are imported.

    The engine core runs inside the calling process, which is an actor of its own: weights then
    reach the model without another copy, and its death is the actor's death.

    Outside a run, which has chosen an interface already, everything listens on loopback.
    """
    use_interface(chosen(LOOPBACK, otherwise="")[0], instead=False)
    os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # all processes of an engine are on one machine
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM's messages go where the process logs, not to a handler of its own.
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    if device == "cpu":
        # Small helpers would be compiled with a C++ compiler, which takes longer than they ever save.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        # Worker processes would be bound to the same cores in every replica on a machine.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def quiet() -> None:
    """Keep vLLM's repeated messages without news out of the log of this process."""
    for name, level in _NOISE.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def contained() -> Iterator[None]:
    """Undo what building a CPU engine leaves behind: a dead ``torch.set_num_threads`` and preloaded libraries.

    The processes of an engine meet by a file in the temporary folder, which only this user shall read.
    """
    set_num_threads, preload = torch.set_num_threads, os.environ.get(_PRELOAD)
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)
        torch.set_num_threads = set_num_threads
        if preload is None:
            os.environ.pop(_PRELOAD, None)
        else:
            os.environ[_PRELOAD] = preload
