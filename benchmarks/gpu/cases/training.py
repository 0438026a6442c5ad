"""Optimizer steps by the backend, as a run takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gpu import batches, oracle, product
from gpu.cases.models import DTYPES
from gpu.registry import Comparison, Machine, case

STEPS = 3


_HISTORY: dict[str, list[tuple[float, float]]] = {}


def _expected(machine: Machine) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step; computed once in a process, because cases differ in settings only."""
    if machine.size not in _HISTORY:
        batch = batches.texts(machine.shape.vocabulary, machine.shape.longest)
        model = oracle.load(oracle.model_folder(machine))
        _HISTORY[machine.size] = oracle.train(model, batch, batches.NLL, product.SMOOTH, steps=STEPS)
    return _HISTORY[machine.size]


def follow(machine: Machine, *, precision: str, label: str = "", **settings: Any) -> Iterator[Comparison]:
    """Train and compare the losses and gradient norms of :data:`STEPS` steps with PyTorch's AdamW in float64.

    A later step's loss may be off by what rounding explains in the gradients that led there.
    """
    shape, dtype = machine.shape, DTYPES[precision]
    batch, model = batches.texts(shape.vocabulary, shape.longest), oracle.model_folder(machine)
    expected = _expected(machine)
    tokens = len(batch.tokens) // 2  # so that a step has several micro-batches
    with product.backend(machine, precision=precision, **{"max_tokens_per_microbatch": tokens, **settings}) as trainer:
        trainer.load(product.POLICY, model, product.SMOOTH)
        found = [product.train(trainer, batch, batches.NLL) for _ in range(STEPS)]
    first = expected[0][0]
    forward, backward = machine.rounding(dtype), machine.rounding(dtype, passes=2)
    for step, ((loss, norm), (exact_loss, exact_norm)) in enumerate(zip(found, expected, strict=True), 1):
        room = forward * exact_loss + backward * abs(first - exact_loss)
        yield Comparison(f"{label}loss of step {step}", abs(loss - exact_loss), room)
        off = abs(norm - exact_norm) / exact_norm
        yield Comparison(f"{label}gradient norm of step {step}", off, backward)


for _precision in DTYPES:

    def _steps(machine: Machine, precision: str = _precision) -> Iterator[Comparison]:
        """Three optimizer steps: losses and gradient norms."""
        yield from follow(machine, precision=precision)

    case("equality", seconds=25, name=f"training_{_precision}")(_steps)


@case("equality", seconds=25)
def packing(machine: Machine) -> Iterator[Comparison]:
    """Optimizer steps in bf16 with each way to lay sequences out."""
    for layout in ({"packing": "padded"}, {"packing": "packed", "attention": "dense"}):
        yield from follow(machine, precision="bf16", label=f"{layout['packing']}: ", **layout)


@case("equality", seconds=25)
def recomputed_activations(machine: Machine) -> Iterator[Comparison]:
    """Optimizer steps whose backward pass computes activations again."""
    for how in ("selective", "full"):
        yield from follow(machine, precision="bf16", label=f"{how}: ", activation_checkpointing=how)


@case("equality", seconds=25)
def offloaded(machine: Machine) -> Iterator[Comparison]:
    """Optimizer steps with parameters, gradients and optimizer in (pinned) host memory."""
    yield from follow(machine, precision="bf16", cpu_offload=True)
    with product.backend(machine, precision="bf16", cpu_offload=True) as trainer:
        trainer.load(product.POLICY, oracle.model_folder(machine), product.SMOOTH)
        # FSDP pins parameters at their first use.
        product.logprobs(trainer, batches.texts(machine.shape.vocabulary, machine.shape.longest))
        loaded = trainer.role("policy").model.hf
        kept = [p.to_local() if hasattr(p, "to_local") else p for p in loaded.parameters()]
        elsewhere = [p for p in kept if p.device.type != "cpu" or (machine.is_cuda and not p.is_pinned())]
        yield Comparison("parameters not in (pinned) host memory", len(elsewhere), 0)
        away = [b for b in loaded.buffers() if b.device.type != machine.device]
        yield Comparison("buffers not on the device", len(away), 0)


@case("equality", seconds=30)
def all_algorithms(machine: Machine) -> Iterator[Comparison]:
    """The backend's loss of every algorithm in bf16 equals that of the same outputs in float64."""
    from gpu.cases.losses import known_outputs

    batch, exact = known_outputs(machine)
    rounds = machine.rounding(torch.bfloat16)
    with product.backend(machine, precision="bf16") as trainer:
        for head in ("lm", "scalar"):
            role = product.POLICY if head == "lm" else product.VALUE
            trainer.load(role, oracle.model_folder(machine, head), product.FROZEN)
        for name, loss in batches.LOSSES.items():
            role = product.POLICY if batches.head_of(loss) == "lm" else product.VALUE
            found, _ = product.train(trainer, batch, loss, role=role.name)
            inputs = {n: getattr(exact, n).clone().requires_grad_() for n in loss.outputs}
            value, _ = oracle.loss_of(oracle.only(exact, inputs), batch, loss)
            value.backward()
            # To first order, a loss is off by what its inputs are off.
            room = sum(
                float(x.grad.abs().sum()) * rounds * max(1.0, float(x.detach().abs().max()))
                for x in inputs.values()
                if x.grad is not None
            )
            yield Comparison(name, abs(found - float(value)), room)
