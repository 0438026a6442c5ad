"""New weights on their way from a trainer to a generator in another process."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec, OptimizerSpec
from rl_core.contracts.transport import WeightGroup
from rl_torch.transports import collective as collective_transport
from rl_torch.transports import ipc as ipc_transport
from rl_torch.transports.group import BroadcastGroup

from gpu import batches, product
from gpu.cases.states import large_model
from gpu.registry import Comparison, Machine, case, compare

TIMEOUT_S = 40.0
NEW_TOKENS = 8


@case("equality", seconds=60)
def ipc(machine: Machine) -> Iterator[Comparison]:
    """Through memory of the same GPU, bucket by bucket."""
    with product.backend(machine, precision="bf16") as trainer:
        expected, requests, spec = _trained(machine, trainer)
        sender = ipc_transport.Sender(trainer)
        plan = sender.plan("policy")
        buffer = sender.begin("policy", 1, machine.device)
        with _Process(_read_ipc, machine, spec, requests, buffer, plan) as other:
            while (word := other.recv()) == "next":
                sender.next(1)
                other.send(None)
            sender.finish(1)
        yield from _compared(word, expected, buckets=len(plan))


@case("equality", seconds=60)
def collective(machine: Machine) -> Iterator[Comparison]:
    """By a broadcast; on one GPU in a group of one, because NCCL does not take two ranks there."""
    if machine.is_cuda:
        yield from _alone(machine)
        return
    group = WeightGroup("127.0.0.1", product.free_port(), 2, machine.device, TIMEOUT_S)
    with product.backend(machine, precision="bf16") as trainer:
        expected, requests, spec = _trained(machine, trainer)
        sender = collective_transport.Sender(trainer)
        plan = sender.plan("policy")
        with _Process(_read_collective, machine, spec, requests, group, plan) as other:
            sender.send("policy", group)
            answer = other.recv()
            sender.close()
        yield from _compared(answer, expected, buckets=len(plan))


def _alone(machine: Machine) -> Iterator[Comparison]:
    """The sender's side, and that a group can be left and joined again."""
    values = torch.arange(1024, dtype=torch.float32, device=machine.device)
    for attempt in ("first", "second"):
        group = BroadcastGroup(WeightGroup("127.0.0.1", product.free_port(), 1, machine.device, TIMEOUT_S), 0)
        sent = values.clone()
        group.broadcast(sent)
        yield compare(f"{attempt} group of one", sent, values, absolute=0.0)
        group.leave()
    with product.backend(machine, precision="bf16") as trainer:
        _trained(machine, trainer)
        sender = collective_transport.Sender(trainer)
        plan = sender.plan("policy")
        sender.send("policy", WeightGroup("127.0.0.1", product.free_port(), 1, machine.device, TIMEOUT_S))
        sender.close()
        yield Comparison("buckets that were not sent", float(not plan), 0.0)


@case("equality", seconds=40)
def host_memory(machine: Machine) -> Iterator[Comparison]:
    """Through host memory, as Ray's object store has it."""
    with product.backend(machine, precision="bf16") as trainer:
        expected, requests, spec = _trained(machine, trainer)
        with product.generator(machine, spec, dtype="bfloat16") as generator:
            generator.update_weights(list(trainer.weights("policy")), 1)
            yield from _compared(_answer(generator, requests), expected, buckets=1)


def _trained(machine: Machine, trainer: Any) -> tuple[SequenceBatch, SequenceBatch, ModelSpec]:
    """What a generator says that reads the trained weights from a folder; prompts; and the model before training."""
    spec = large_model(machine)
    batch = batches.texts(spec.vocab_size, machine.shape.longest)
    trainer.load(product.POLICY, spec, OptimizerSpec(learning_rate=1e-2))
    product.train(trainer, batch, batches.NLL)
    requests = product.prompts(spec.vocab_size, machine.shape.longest)
    folder = f"{machine.folder}/trained"
    trainer.export("policy", folder)
    exported = ModelSpec(path=folder, vocab_size=spec.vocab_size, max_length=spec.max_length)
    with product.generator(machine, exported, dtype="bfloat16") as generator:
        return generator.generate(requests, product.greedy(NEW_TOKENS)), requests, spec


def _answer(generator: Any, requests: SequenceBatch) -> tuple[np.ndarray, np.ndarray]:
    found = generator.generate(requests, product.greedy(NEW_TOKENS))
    return found.tokens, found.token_columns["sampled_logprobs"]


def _compared(answer: Any, expected: SequenceBatch, *, buckets: int) -> Iterator[Comparison]:
    """The same weights, kernels and shapes: the same numbers."""
    tokens, logprobs = answer
    note = f"{buckets} bucket{'s' if buckets > 1 else ''}"
    yield Comparison("tokens that differ", float((tokens != expected.tokens).sum()), 0, note=note)
    off = np.abs(logprobs - expected.token_columns["sampled_logprobs"]).max()
    yield Comparison("log-probs", float(off), 0)


class _Process:
    """A process that runs ``target(connection, machine, …)``; what it sends is received, exceptions are raised here."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_guarded, args=(target, theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(5)
        self._process.kill()
        self._connection.close()

    def recv(self) -> Any:
        if not self._connection.poll(TIMEOUT_S):
            raise TimeoutError(f"the generator's process was silent for {TIMEOUT_S:g} s")
        ok, word = self._connection.recv()
        if not ok:
            raise RuntimeError(f"in the generator's process:\n{word}")
        return word

    def send(self, word: Any) -> None:
        self._connection.send(word)


def _guarded(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    try:
        target(connection, *arguments)
    except Exception:  # noqa: BLE001 - whatever it is, the other process has to learn of it
        connection.send((False, traceback.format_exc()))


def _read_ipc(
    connection: Connection, machine: Machine, spec: ModelSpec, requests: SequenceBatch, buffer: bytes, plan: Any
) -> None:
    def next_bucket() -> None:
        connection.send((True, "next"))
        connection.recv()

    with product.generator(machine, spec, dtype="bfloat16") as generator:
        ipc_transport.Receiver(generator).receive(buffer, next_bucket, plan, 1)
        connection.send((True, _answer(generator, requests)))


def _read_collective(
    connection: Connection, machine: Machine, spec: ModelSpec, requests: SequenceBatch, group: WeightGroup, plan: Any
) -> None:
    with product.generator(machine, spec, dtype="bfloat16") as generator:
        receiver = collective_transport.Receiver(generator)
        receiver.receive(group, 1, plan, 1)
        connection.send((True, _answer(generator, requests)))
        receiver.close()
