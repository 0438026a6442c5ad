"""torch.compile, whose first step takes a minute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpu.cases.speed import train
from gpu.cases.training import follow
from gpu.registry import Comparison, Machine, Skip, Speed, case


@case("equality", seconds=90)
def compiled(machine: Machine) -> Iterator[Comparison]:
    """Optimizer steps of compiled layers."""
    _need_a_gpu(machine)
    yield from follow(machine, precision="bf16", compile=True)


@case("speed", seconds=150)
def train_compiled(machine: Machine) -> Iterator[Speed]:
    """SFT steps of the 1.5B model with compiled layers."""
    _need_a_gpu(machine)
    for speed in train(machine, "1.5b", only_sft=True, compile=True):
        yield replace(speed, note=f"{speed.note}, compiled")


def _need_a_gpu(machine: Machine) -> None:
    if not machine.is_cuda:
        raise Skip("takes a minute, and needs a compiler for C++")
