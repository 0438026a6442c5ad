"""Peak memory of a backend's real training, for tests that compare estimates with it.

:class:`Probe` runs cases in processes of their own, which Python's fork server starts: the imports are paid once where
the program that measures has told it to preload them.

What is measured is the growth of the resident set between a process that has imported everything, joined its process
group and trained a tiny model (which loads the code of every library into memory), and the largest moment of loading
and two training steps. The first of them is short: it only has to create the optimizer's states. glibc is told to give
every tensor of more than 64 KiB back to the system when it is freed: it would keep it for later, which is not memory
that training needs. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, WorkerContext
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role
from rl_core.contracts.rating import BackendJob, JobRole, ModelShape
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.discovery.references import resolve_reference
from rl_huggingface.model_shape import shape_of_config

POLICY = Role("policy", trainable=True)
TINY = {"hidden_size": 64, "heads": 2, "kv_heads": 2, "layers": 2, "ffn": 64}


@dataclass(frozen=True)
class Case:
    """A training run of two steps.

    Attributes:
        init: the section ``model.init``.
        vocab: size of the vocabulary.
        tokens: of a micro-batch, at most.
        sequences, length: of the second step's batch, on all ranks together.
        config: fields of the backend's section.
        entropy: whether the loss looks at it, as losses on rollouts do.
    """

    init: dict[str, Any]
    vocab: int
    tokens: int
    sequences: int
    length: int
    config: dict[str, Any] = field(default_factory=dict)
    roles: tuple[Role, ...] = (POLICY,)
    entropy: bool = False
    adapter: AdapterSpec | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All fields of the backend's section but its name."""
        return {"max_tokens_per_microbatch": self.tokens, **self.config}

    def job(self) -> BackendJob:
        """What a backend is told about it."""
        return BackendJob(
            algorithm="test",
            roles=tuple(JobRole(role, shape_of_init(self.init, self.vocab)) for role in self.roles),
            gpus=0,
            nodes=1,
            max_length=self.length,
            input="rollouts" if self.entropy else "examples",
            tokens_per_step=self.sequences * self.length,
            adapter=self.adapter,
        )


def shape_of_init(init: Mapping[str, Any], vocabulary: int) -> ModelShape:
    """The shape of a section ``model.init``."""
    return shape_of_config(
        {
            "model_type": init["architecture"],
            "hidden_size": init["hidden_size"],
            "num_hidden_layers": init["layers"],
            "num_attention_heads": init["heads"],
            "num_key_value_heads": init["kv_heads"],
            "intermediate_size": init["ffn"],
            "tie_word_embeddings": init.get("tie_embeddings", True),
            "vocab_size": vocabulary,
        }
    )


class Probe:
    """Processes that run ``cases`` as the ranks of a group.

    Args:
        backend: name, class and config class, e.g. ``("mine", "rl_mine.backend:Mine", "rl_mine.config:MineConfig")``.
    """

    def __init__(self, cases: Mapping[str, Case], world: int, *, backend: tuple[str, str, str]) -> None:
        self.cases = cases
        context = get_context("forkserver")
        self._ranks = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            context.Process(target=_answer, args=(theirs, rank, world, backend), daemon=True).start()
            theirs.close()  # so that a process that dies ends its pipe
            self._ranks.append(ours)

    def peaks(self) -> dict[str, int]:
        """Bytes of each case on the rank that needs most."""
        found = {name: max(self._measure(case)) for name, case in self.cases.items()}
        for pipe in self._ranks:
            pipe.close()
        return found

    def _measure(self, case: Case) -> list[int]:
        given = {**asdict(case), "config": case.settings}
        with TemporaryDirectory() as folder:
            for pipe in self._ranks:
                pipe.send((given, Rendezvous("127.0.0.1", 0, folder)))
            found = []
            for pipe in self._ranks:
                assert pipe.poll(300), "no answer in five minutes"
                peak, failure = pipe.recv()
                assert not failure, failure
                found.append(peak)
        return found


def nll(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood, with the entropy where it was asked for."""
    loss = -(outputs.logprobs * batch["loss_mask"]).sum() / scale.tokens
    if outputs.entropy is None:
        return loss, {}
    return loss, {"entropy": (outputs.entropy * batch["loss_mask"]).sum() / scale.tokens}


def squared_values(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Regress every value on 1."""
    return ((outputs.values - 1).square() * batch["loss_mask"]).sum() / scale.tokens, {}


def _answer(pipe: Connection, rank: int, world: int, backend: tuple[str, str, str]) -> None:
    """Send each case's peak and what went wrong, until there are no more."""
    torch.set_num_threads(1)
    give_back_freed_memory()
    factory, config = (cast(Any, resolve_reference(reference)) for reference in backend[1:])
    gc.freeze()  # each case collects garbage: not among all that was imported
    while True:
        try:
            case, place = pipe.recv()
        except EOFError:
            return
        try:
            made = factory(config(name=backend[0], **case["config"]))
            context = WorkerContext(rank, world, place.address, place.port, threads=1, rendezvous=place)
            pipe.send((measure(made, case, context), ""))
        except Exception:  # noqa: BLE001 - the other process raises it
            pipe.send((0, traceback.format_exc()))


def give_back_freed_memory() -> None:
    """Have this process return every freed tensor of more than 64 KiB at once; kernels that find it set leave it so."""
    for variable, parameter in (("MALLOC_TRIM_THRESHOLD_", -1), ("MALLOC_MMAP_THRESHOLD_", -3)):  # malloc.h
        os.environ[variable] = "65536"  # too late for this process to read
        ctypes.CDLL(None).mallopt(parameter, 65536)


def measure(made: Any, case: Mapping[str, Any], context: WorkerContext) -> int:
    """The peak of a case, in bytes."""
    place = made.setup(context)
    try:
        tiny = {**case, "init": {**case["init"], **TINY}, "vocab": 64, "sequences": 4, "length": 16}
        train(made, tiny, place)
        forget(made)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        train(made, case, place)
        return resident("VmHWM") - before
    finally:
        made.close()


def train(made: Any, case: Mapping[str, Any], place: Topology) -> None:
    """Load the roles and take two steps; frozen roles compute log-probs before each."""
    adapter = AdapterSpec(**case["adapter"]) if case["adapter"] else None
    spec = ModelSpec(init=case["init"], vocab_size=case["vocab"], max_length=4096)
    roles = [Role(**role) for role in case["roles"]]
    for role in roles:
        own = ModelSpec(**{**spec.__dict__, "adapter": adapter if role.trainable else None})
        made.load(role, own, OptimizerSpec(1e-3) if role.trainable else None)
    batches = [random_batch(n, length, case["vocab"]) for n, length in ((2, 8), (case["sequences"], case["length"]))]
    outputs = ("logprobs", "entropy") if case["entropy"] else ("logprobs",)
    values = LossSpec("rl_torch.memory_probe:squared_values", outputs=("values",))
    losses = {"lm": LossSpec("rl_torch.memory_probe:nll", outputs=outputs), "scalar": values}
    for batch in batches:
        shard = batch.select(batch.split_balanced(place.dp_size)[place.dp_rank])
        for role in (r for r in roles if not r.trainable):
            made.forward(role.name, shard, outputs, 1.0)
        for role in (r for r in roles if r.trainable):
            made.train(role.name, shard, losses[role.head], Scale.of(batch))


def forget(made: Any) -> None:
    """Drop the loaded models, but stay in the process group."""
    made.unload()
    ctypes.CDLL(None).malloc_trim(0)  # what is free must not count as used before, and then be used


def random_batch(count: int, length: int, vocabulary: int) -> SequenceBatch:
    """Sequences of equal length, all of whose tokens are trained on."""
    rng = np.random.default_rng(0)
    return SequenceBatch.from_lists(
        [rng.integers(0, vocabulary, length) for _ in range(count)],
        token_columns={"loss_mask": [np.ones(length, np.float32)] * count},
    )


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most) in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
