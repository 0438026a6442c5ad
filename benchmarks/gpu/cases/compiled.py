"""torch.compile, whose first step takes a minute."""

from __future__ import annotations

from collections.abc import Iterator

from gpu.cases.training import follow
from gpu.registry import Comparison, Machine, Skip, case


@case("equality", seconds=90)
def compiled(machine: Machine) -> Iterator[Comparison]:
    """Optimizer steps of compiled layers."""
    if not machine.is_cuda:
        raise Skip("needs a minute, and a compiler for C++")
    yield from follow(machine, precision="bf16", compile=True)
