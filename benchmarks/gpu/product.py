"""The product's parts as the cases use them: a backend or a generator alone in this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_generation_hf.generator import HfGenerator

from gpu.registry import Machine
from gpu.settings import Fsdp2Settings, HfSettings

POLICY = Role("policy", trainable=True)
VALUE = Role("value", trainable=True, head="scalar")
SMOOTH = OptimizerSpec(learning_rate=3e-2, weight_decay=0.01, eps=1e-2, max_grad_norm=1.0)
"""AdamW whose steps are smooth in the gradient: with the usual small eps the sign of a gradient of almost 0 decides."""
FROZEN = OptimizerSpec(learning_rate=0.0, max_grad_norm=None)
"""Steps that change nothing, so that the next one begins where this one did."""


def context(machine: Machine) -> WorkerContext:
    """The only rank, on the machine's device."""
    threads = torch.get_num_threads() if machine.device == "cpu" else len(os.sched_getaffinity(0))
    return WorkerContext(0, 1, "127.0.0.1", free_port(), device=machine.device, threads=threads)


@contextmanager
def backend(machine: Machine, **settings: Any) -> Iterator[Fsdp2Backend]:
    """A backend that is set up, and closed afterwards; ``settings`` are those of the section ``backend``."""
    made = Fsdp2Backend(Fsdp2Settings(**settings))  # type: ignore[arg-type]
    made.setup(context(machine))
    try:
        yield made
    finally:
        made.close()
        free_memory()


@contextmanager
def generator(machine: Machine, spec: ModelSpec, **settings: Any) -> Iterator[HfGenerator]:
    """A generator with ``spec`` loaded."""
    made = HfGenerator(HfSettings(**settings))  # type: ignore[arg-type]
    made.setup(context(machine))
    made.load(spec, None)
    try:
        yield made
    finally:
        made.close()
        free_memory()


def train(trainer: Fsdp2Backend, batch: SequenceBatch, loss: LossSpec, *, role: str = "policy") -> tuple[float, float]:
    """One optimizer step: its loss and gradient norm.

    Raises:
        FloatingPointError: something was not finite.
    """
    result = trainer.train(role, batch, loss, Scale.of(batch))
    if not result.finite:
        raise FloatingPointError(f"the loss or its gradient is not finite: {dict(result.partial)}")
    return result.partial["loss"], result.shared["grad_norm"]


def logprobs(trainer: Fsdp2Backend, batch: SequenceBatch, *, role: str = "policy") -> np.ndarray:
    """float32 [T]."""
    return trainer.forward(role, batch, ("logprobs",), 1.0)["logprobs"]


def prompts(vocabulary: int, longest: int, *, count: int = 6) -> SequenceBatch:
    """Prompts of different lengths, with the seeds that sampling needs."""
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, vocabulary, n) for n in rng.integers(2, longest // 2, count)]
    return SequenceBatch.from_lists(rows, sequence_columns={"seed": np.arange(count, dtype=np.int64)})


def greedy(tokens: int) -> SamplingParams:
    """The most likely tokens, all of them."""
    return SamplingParams(max_new_tokens=tokens, temperature=0.0)


def weights(trainer: Fsdp2Backend, role: str = "policy") -> dict[str, torch.Tensor]:
    """Whole parameters under their Hugging Face names, in host memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in trainer.named_weights(role)}


def free_memory() -> None:
    """Give back what PyTorch keeps for later."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
