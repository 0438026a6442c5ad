"""What is compared: models, data shapes and steps. Every system reads the same :class:`Job` from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["sft", "dpo", "rm", "grpo"]
Precision = Literal["fp32", "bf16"]
System = Literal["rl", "trl", "plain"]

VOCABULARY = 128
FIRST_CHARACTER, CHARACTERS = 33, 94
"""The printable ASCII characters without the space; behind ``<pad>`` 0, ``<eos>`` 1 and ``<unk>`` 2 their ids begin."""

SPECIAL_TOKENS = 3
EOS = 1


@dataclass(frozen=True)
class Size:
    """A Qwen2 shape, and how many steps of it are measured behind the warm-up."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    steps: int


SIZES: Mapping[str, Size] = {
    "xs": Size(hidden_size=128, layers=2, heads=4, kv_heads=2, ffn=384, steps=40),
    "s": Size(hidden_size=256, layers=4, heads=4, kv_heads=2, ffn=768, steps=16),
    "m": Size(hidden_size=512, layers=8, heads=8, kv_heads=4, ffn=1536, steps=6),
}
"""0.4, 3.2 and 25 million parameters."""

WARMUP_STEPS = 2


@dataclass(frozen=True)
class Workload:
    """One kind of training on rows of one shape.

    Attributes:
        rows: data rows of a step: sequences (sft), pairs (dpo, rm), prompts (grpo).
        lengths: fewest and most tokens of a sequence, the end token included; for grpo of a prompt.
        completions: for grpo: fewest and most tokens of a completion. Where they are equal, completions never end on
            their own.
        group_size: for grpo: completions per prompt.
        beta: for grpo: weight of the KL term.
        learning_rate: constant.
        target: least ratio of throughputs, this project : TRL, in fp32.
        text: for tables.
    """

    kind: Kind
    rows: int
    lengths: tuple[int, int]
    learning_rate: float
    target: float
    text: str
    completions: tuple[int, int] = (0, 0)
    group_size: int = 1
    beta: float = 0.0

    @property
    def sequences(self) -> int:
        """That one optimizer step trains on."""
        return self.rows * {"sft": 1, "dpo": 2, "rm": 2, "grpo": self.group_size}[self.kind]

    @property
    def varied(self) -> bool:
        """Whether completions differ in length."""
        return self.completions[0] != self.completions[1]


def _grpo(completions: tuple[int, int], beta: float, target: float, text: str) -> Workload:
    return Workload(
        "grpo", 16, (16, 24), 1e-6, target, text, completions=completions, group_size=8, beta=beta
    )  # fmt: skip


WORKLOADS: Mapping[str, Workload] = {
    "sft-40-63": Workload("sft", 32, (40, 63), 1e-4, 1.25, "SFT, 32 sequences of 40-63 tokens"),
    "sft-10-200": Workload("sft", 32, (10, 200), 1e-4, 2.0, "SFT, 32 sequences of 10-200 tokens"),
    "dpo": Workload("dpo", 16, (40, 63), 1e-5, 1.6, "DPO, 16 pairs of 40-63 tokens"),
    "rm": Workload("rm", 16, (40, 63), 1e-5, 1.4, "Reward model, 16 pairs of 40-63 tokens"),
    "grpo": _grpo((32, 32), 0.0, 1.6, "GRPO, 16 × 8 completions of 32 tokens"),
    "grpo-kl": _grpo((32, 32), 0.04, 1.6, "the same with β = 0.04"),
    "grpo-varied": _grpo((4, 32), 0.0, 2.5, "GRPO, 16 × 8 completions of 4-32 tokens"),
}
"""Lengths are drawn uniformly."""


@dataclass(frozen=True)
class Job:
    """One run of one system, as its process is told.

    Attributes:
        steps: optimizer steps in all, :data:`WARMUP_STEPS` among them.
        model: Hugging Face folder.
        rows: JSON lines in the order in which they are to be trained on, as many as the steps need.
        progress: file to which a JSON object is added as each step ends (see ``progress.py``).
        replay: for grpo: samples to train on instead of generating, or None.
    """

    workload: str
    size: str
    precision: Precision
    threads: int
    steps: int
    model: str
    rows: str
    progress: str
    replay: str | None = None

    @property
    def shape(self) -> Workload:
        return WORKLOADS[self.workload]

    @classmethod
    def read(cls, path: str | Path) -> Job:
        """The job that :meth:`write` wrote."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> Path:
        """Write it as JSON; returns ``path``."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path


def read_rows(path: str) -> list[dict[str, str]]:
    """JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def share_of_odd_characters(text: str) -> float:
    """The reward of every GRPO workload: the share of characters with an odd code point; 0 for no text."""
    return sum(ord(c) & 1 for c in text) / len(text) if text else 0.0
