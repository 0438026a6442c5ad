"""What both systems train: the numbers of ``examples/quickstart.yaml``, read by TRL's runner from a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Supervised training, then GRPO, with held-out accuracy measured on the way.

    Attributes:
        tokenizer: Hugging Face folder.
        demonstrations: JSON lines with ``prompt`` and ``completion``.
        questions: JSON lines with ``prompt`` and ``answer``, to sample from.
        held_out: the same, to measure accuracy on (greedily).
        progress: file to which a line is added for the first step and for every measurement.
    """

    seed: int
    threads: int
    tokenizer: str
    demonstrations: str
    questions: str
    held_out: str
    progress: str
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 352
    vocabulary: int = 128
    initializer_range: float = 0.08
    max_length: int = 16
    max_new_tokens: int = 4
    sft_steps: int = 1200
    sft_rows: int = 64
    sft_learning_rate: float = 2e-3
    warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.99)
    sft_measured_every: int = 300
    grpo_steps: int = 60
    prompts: int = 32
    group_size: int = 8
    grpo_learning_rate: float = 3e-4
    grpo_measured_every: int = 10

    def write(self, path: Path) -> Path:
        """As JSON; returns ``path``."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path

    @classmethod
    def read(cls, path: str) -> Recipe:
        """What :meth:`write` wrote."""
        return cls(**json.loads(Path(path).read_text()))
