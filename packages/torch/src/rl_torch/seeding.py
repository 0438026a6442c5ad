"""Threads, seeds and random-number state of a worker process."""

from __future__ import annotations

import torch
from torch import Tensor


def prepare_process(*, threads: int, seed: int, rank: int = 0) -> None:
    """Set the number of CPU threads and seed torch (CPU and CUDA), differently on each rank."""
    torch.set_num_threads(max(threads, 1))
    torch.manual_seed(seed + rank)


def rng_state() -> dict[str, Tensor]:
    """State of torch's global generators as uint8 tensors: ``cpu``, and ``cuda`` where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Undo :func:`rng_state`; a ``cuda`` state is ignored on a machine without CUDA."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
