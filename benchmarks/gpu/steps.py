"""One rank of the training benchmark: a model of random weights, recorded batches, and timed steps on them.

What is timed is the real thing: :class:`rl_backend_fsdp2.backend.Fsdp2Backend` under the ``step`` methods of the SFT
and GRPO algorithms, without Ray between them.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from rl_algo_grpo.config import GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_algo_sft_rm.config import SftConfig
from rl_algo_sft_rm.sft import Sft
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_core.model import reduce_metrics

from gpu.flops import TransformerFlops
from gpu.timing import Size, device_name, time_steps

GROUP_SIZE = 4
PROMPT_PART = 8
"""GRPO's prompts are this part of a sequence."""

LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Job:
    """What one process group measures.

    Attributes:
        device: ``cuda`` or ``cpu``.
        backend: fields of the section ``backend``.
    """

    size: Size
    device: str
    backend: Mapping[str, Any]
    warmup: int
    steps: int


@dataclass(frozen=True)
class Measurement:
    """What a rank saw of one kind of step.

    Attributes:
        step: ``sft`` or ``grpo``.
        parameters: of the model.
        seconds: of every timed step.
        tokens: of a step, over all ranks, prompts included.
        flops: of a step, over all ranks; see :class:`gpu.flops.TransformerFlops`.
        attention_flops: the part of them that is attention.
        peak_bytes: the most memory that was in use: PyTorch's on a GPU, the resident set of the process on CPU (with
            Python and its libraries); None where the system does not tell.
        device_name: of this rank.
    """

    step: str
    parameters: int
    seconds: tuple[float, ...]
    tokens: int
    flops: float
    attention_flops: float
    peak_bytes: int | None
    device_name: str


def serve(rank: int, world: int, port: int, job: Job, answers: Connection) -> None:
    """Send this rank's list of measurements, or the text of the exception that ended it."""
    try:
        answers.send((True, measure(rank, world, port, job)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the process that prints must learn of it
        hint = ""
        if isinstance(error, torch.OutOfMemoryError):
            lower = job.backend["max_tokens_per_microbatch"] // 2
            hint = f"\n    add max_tokens_per_microbatch={lower} or activation_checkpointing=selective"
        answers.send((False, f"rank {rank}: {type(error).__name__}: {error}{hint}\n{traceback.format_exc()}"))


def measure(rank: int, world: int, port: int, job: Job) -> list[Measurement]:
    """Load the model and time both kinds of step."""
    if job.device == "cuda":
        # A worker sees its own GPU only, as under Ray. CUDA reads this when it is first used.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[rank] if visible else str(rank)
    backend = Fsdp2Backend(Fsdp2Config.model_validate({"name": "fsdp2", **job.backend}))
    place = backend.setup(WorkerContext(rank, world, "127.0.0.1", port, device=job.device))
    try:
        size = job.size
        spec = ModelSpec(init=size.init, vocab_size=size.vocab_size, max_length=size.sequence_length)
        info = backend.load(Role("policy", trainable=True), spec, OptimizerSpec(LEARNING_RATE))
        models: Any = {"policy": LocalModel(backend, dp_size=place.dp_size)}
        sft = Sft(SftConfig(name="sft"))
        # Two optimizer steps, so that the old log-probs must be computed first.
        grpo = Grpo(GrpoConfig(name="grpo", group_size=GROUP_SIZE, minibatches=2))
        texts = random_texts(size, seed=place.dp_rank)
        rollouts = recorded_rollouts(texts, models["policy"], seed=place.dp_rank)
        timed = {
            "sft": (lambda: sft.step(texts, models), texts, 1.0),
            "grpo": (lambda: grpo.step(rollouts, models), rollouts, 4 / 3),
        }
        return [
            _measure(name, step, job, info, batch=batch, passes=passes, copies=place.dp_size)
            for name, (step, batch, passes) in timed.items()
        ]
    finally:
        backend.close()


@dataclass
class LocalModel:
    """What an algorithm needs of :class:`rl_core.model.Model`, on a rank that holds its own part of the batch.

    All data-parallel ranks hold equally many sequences and scored tokens.
    """

    backend: Fsdp2Backend
    dp_size: int
    role: Role = field(default_factory=lambda: Role("policy", trainable=True))

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """``outputs`` of this rank's sequences."""
        return self.backend.forward(self.role.name, batch, outputs, temperature)

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """An optimizer step on all ranks' sequences; this rank's part of the metrics.

        Args:
            scale: what the loss is divided by, as far as it is this rank's; ``batch``'s by default.

        Raises:
            FloatingPointError: a loss or gradient was not finite, so nothing was trained.
        """
        own = scale or Scale.of(batch)
        everyone = Scale(own.tokens * self.dp_size, own.sequences * self.dp_size, own.units * self.dp_size)
        result = self.backend.train(self.role.name, batch, loss, everyone)
        if not result.finite:
            raise FloatingPointError(f"the loss or its gradient is not finite: {reduce_metrics([result])}")
        return reduce_metrics([result])


def random_texts(size: Size, *, seed: int) -> SequenceBatch:
    """Sequences of full length, all of whose tokens are trained on."""
    rng = np.random.default_rng(seed)
    shape = (size.sequences, size.sequence_length)
    return SequenceBatch.from_lists(
        list(rng.integers(0, size.vocab_size, shape)),
        token_columns={"loss_mask": list(np.ones(shape, np.float32))},
    )


def recorded_rollouts(texts: SequenceBatch, policy: LocalModel, *, seed: int) -> SequenceBatch:
    """``texts`` as completions after short prompts, with sampled log-probs and rewards of 0 and 1."""
    within = np.arange(len(texts.tokens)) - texts.offsets[texts.sequence_ids]
    mask = within >= texts.lengths[texts.sequence_ids] // PROMPT_PART
    rollouts = texts.with_columns(
        token={"loss_mask": mask.astype(np.float32)},
        sequence={
            "group": np.arange(len(texts)) // GROUP_SIZE,
            "reward": np.random.default_rng(seed).integers(0, 2, len(texts)).astype(np.float32),
        },
    )
    return rollouts.with_columns(token={"sampled_logprobs": policy.forward(rollouts)["logprobs"]})


def _measure(
    name: str,
    step: Callable[[], Any],
    job: Job,
    info: ModelInfo,
    *,
    batch: SequenceBatch,
    passes: float,
    copies: int,
) -> Measurement:
    """Time ``step``, which trains on ``batch`` and costs ``passes`` times its forward and backward pass.

    Args:
        copies: ranks that each hold such a batch.
    """
    timing = time_steps(step, device=job.device, warmup=job.warmup, steps=job.steps)
    init, lengths = job.size.init, batch.lengths.tolist()
    flops = TransformerFlops(
        parameters=info.parameters,
        head_parameters=info.vocab_size * init["hidden_size"],
        layers=init["layers"],
        attention_width=init["hidden_size"],
    )
    within = np.arange(len(batch.tokens)) - batch.offsets[batch.sequence_ids]
    scored = int(((batch.token_columns["loss_mask"] != 0) & (within > 0)).sum())
    return Measurement(
        step=name,
        parameters=info.parameters,
        seconds=timing.seconds,
        tokens=len(batch.tokens) * copies,
        flops=flops.train(lengths, scored) * passes * copies,
        attention_flops=flops.attention(lengths) * passes * copies,
        peak_bytes=timing.peak_bytes,
        device_name=device_name(job.device),
    )
