"""The kernel ``liger``, which is a package of its own and needs liger-kernel."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from gpu.cases.models import need_cuda
from gpu.cases.speed import train
from gpu.cases.training import follow
from gpu.registry import Comparison, Machine, Skip, Speed, case


@case("equality", seconds=60)
def liger(machine: Machine) -> Iterator[Comparison]:
    """Optimizer steps with Liger's kernels, none of which is left out."""
    with _found(machine) as log:
        for precision in ("fp32", "bf16"):
            for recompute in ("none", "selective", "full"):
                label = f"{precision}, recomputing {recompute}: "
                settings = {"kernels": ("liger",), "activation_checkpointing": recompute}
                yield from follow(machine, precision=precision, label=label, **settings)
        left_out = [text for text in log if "is not used" in text or "failed the test" in text]
        yield Comparison("left out", float(len(left_out)), 0.0, note="; ".join(left_out))
        yield Comparison("not tried", float(not any("kernel liger" in text for text in log)), 0.0)


@case("speed", seconds=60)
def train_liger(machine: Machine) -> Iterator[Speed]:
    """SFT steps of the 1.5B model with Liger's kernels."""
    with _found(machine):
        more = {"kernels": ("liger",), "logprob_chunk_tokens": None}
        for speed in train(machine, "1.5b", only_sft=True, **more):
            yield replace(speed, note=f"{speed.note}, Liger")


@contextmanager
def _found(machine: Machine) -> Iterator[list[str]]:
    """Let the kernel be found by its entry point, though its package is not installed; what is logged of kernels."""
    need_cuda(machine, "needs a GPU")
    if find_spec("liger_kernel") is None:
        raise Skip("liger-kernel is not installed: pip install liger-kernel")
    package = Path(machine.folder) / "rl_kernels_liger-0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: rl-kernels-liger\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[rl_torch.kernels]\nliger = rl_kernels_liger.kernel:KERNEL\n")
    kept, logger = _Kept(), logging.getLogger("rl_torch.kernels.apply")
    level = logger.level
    sys.path.append(machine.folder)
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    try:
        yield kept.messages
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
        sys.path.remove(machine.folder)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
