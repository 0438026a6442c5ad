"""What the driver computes in a step, over 64 to 65,536 sequences: no Ray, no model, no GPU.

``split`` to ``merge`` are the parts of every pass over a batch: which sequences go to which rank, the ranks' batches,
their micro-batches, and per-token answers in the batch's order again. ``step`` is the whole ``step`` method of GRPO
with two minibatches: a forward pass for the old log-probs, advantages, two updates, metrics; its ranks are objects in
this process that answer at once. What Ray adds is measured by ``rank_stubs.py``.

    python benchmarks/controller.py
    python benchmarks/controller.py --sequences 64 4096 --tokens 16 --ranks 8
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rl_algo_grpo.config import GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Topology, TrainResult
from rl_core.contracts.model import ModelInfo, Role
from rl_core.model import Model

GROUP = 8
MICROBATCH_TOKENS = 16384
PARTS = ("split", "shard", "pack", "merge", "step")


@dataclass(frozen=True)
class Measured:
    """Least CPU seconds of each part over the rounds, for one size."""

    sequences: int
    tokens_per_sequence: int
    ranks: int
    seconds: dict[str, float]

    @property
    def one_pass(self) -> float:
        """Sharding, packing and merging the batch once."""
        return sum(self.seconds[part] for part in ("split", "shard", "pack", "merge"))


class Rank:
    """Stands for a training worker in this process: ``call.remote`` answers at once."""

    @property
    def call(self) -> Rank:
        return self

    def remote(self, *arguments: Any) -> Any:
        return answer(*arguments)


class Pool:
    """What :class:`rl_core.model.Model` needs of a worker pool: the answers are there already."""

    def get(self, answers: Sequence[Any], *, what: str = "") -> list[Any]:
        return list(answers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size, print a table, write a JSON file; the exit code."""
    options = _parser().parse_args(arguments)
    results = [
        measure(sequences, tokens, ranks=options.ranks, rounds=options.rounds)
        for tokens in options.tokens
        for sequences in options.sequences
    ]
    Console(width=130).print(table(results))
    if options.output:
        lines = [{**vars(r), "one_pass": r.one_pass} for r in results]
        options.output.write_text(json.dumps(lines, indent=2) + "\n")
    return 0


def measure(sequences: int, tokens_per_sequence: int, *, ranks: int, rounds: int) -> Measured:
    """CPU seconds of each part on a batch with lengths of half to one and a half times ``tokens_per_sequence``."""
    batch = rollouts(sequences, tokens_per_sequence)
    parts = batch.split_balanced(ranks)
    shards = [batch.select(part) for part in parts]
    values = [shard.token_columns["sampled_logprobs"] for shard in shards]
    algorithm, models = grpo(), {"policy": model(ranks)}
    work: dict[str, Callable[[], Any]] = {
        "split": lambda: batch.split_balanced(ranks),
        "shard": lambda: [batch.select(part) for part in parts],
        "pack": lambda: [shard.pack(MICROBATCH_TOKENS) for shard in shards],
        "merge": lambda: batch.scatter(parts, values, per_token=True),
        "step": lambda: algorithm.step(batch, models),
    }
    seconds = {name: min(_cpu_seconds(one) for _ in range(rounds)) for name, one in work.items()}
    return Measured(sequences, tokens_per_sequence, ranks, seconds)


def rollouts(sequences: int, tokens_per_sequence: int) -> SequenceBatch:
    """A batch as the generator's and the rewards' answers make it, with random values."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(tokens_per_sequence // 2, tokens_per_sequence * 3 // 2 + 1, sequences)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    return SequenceBatch(
        rng.integers(0, 32000, total, dtype=np.int32),
        offsets,
        {
            "loss_mask": np.ones(total, np.float32),
            "sampled_logprobs": -rng.random(total, dtype=np.float32),
            "weights_version": np.zeros(total, np.int32),
        },
        {
            "group": np.arange(sequences, dtype=np.int64) // GROUP,
            "reward": rng.integers(0, 2, sequences).astype(np.float32),
            "truncated": np.zeros(sequences, bool),
        },
    )


def grpo() -> Grpo:
    """GRPO with two updates a step, so that it asks for the old log-probs; whatever the rewards, of all sequences."""
    options: dict[str, Any] = {"minibatches": 2, "skip_zero_gradient": False}
    return Grpo(GrpoConfig(name="grpo", prompts_per_step=1, group_size=GROUP, learning_rate=1e-6, **options))


def model(ranks: int) -> Model:
    """The driver's handle on a policy over data-parallel ranks."""
    info = ModelInfo(parameters=1, max_length=0, vocab_size=32000)
    topology = [Topology(rank, ranks) for rank in range(ranks)]
    pool: Any = Pool()
    return Model(
        Role("policy", trainable=True), info=info, pool=pool, workers=[Rank() for _ in range(ranks)], topology=topology
    )


def answer(method: str, role: str, shard: SequenceBatch, *arguments: Any) -> Any:
    """What a rank returns for a shard."""
    if method == "forward":
        return {name: np.zeros(len(shard.tokens), np.float32) for name in arguments[0]}
    metrics = {"loss": 0.1, "policy/clip_fraction": 0.0, "mismatch/kl": 0.0, "policy/max_ratio": 1.0}
    return TrainResult(partial=metrics, shared={"grad_norm": 1.0, "learning_rate": 1e-6}, finite=True)


def table(results: Sequence[Measured]) -> Table:
    """CPU seconds of every part; microseconds a sequence of one pass and of the step."""
    shown = Table(title="CPU seconds of the driver", title_justify="left")
    for column in ("sequences", "tokens each", *PARTS, "split…merge", "µs/sequence", "step µs/sequence"):
        shown.add_column(column, justify="right")
    for r in results:
        shown.add_row(
            f"{r.sequences:,}",
            f"{r.tokens_per_sequence:,}",
            *(f"{r.seconds[part]:.4f}" for part in PARTS),
            f"{r.one_pass:.4f}",
            f"{r.one_pass / r.sequences * 1e6:.1f}",
            f"{r.seconds['step'] / r.sequences * 1e6:.1f}",
        )
    return shown


def _cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 512, 4096, 65536])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 1000], help="tokens per sequence on average")
    parser.add_argument("--ranks", type=int, default=64, help="data-parallel ranks")
    parser.add_argument("--rounds", type=int, default=3, help="the least of as many is shown")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
