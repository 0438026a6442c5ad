"""What a step costs the driver with 8 to 512 ranks, through Ray: remote calls, shards, answers, heartbeats; no models.

Every rank is a training worker and a generator that answer at once, so what is left is orchestration: a GRPO step with
two minibatches (sample, old log-probs, two updates, weights) through the router, ``Model`` and the worker pool of a
run, watched by its watchdog. Ranks share a few processes, because 512 processes need more memory than a laptop has:
each rank has a call of its own in every phase, an answer, a heartbeat and a place under the watchdog, but not a process
and a connection of its own. ``--own-processes`` gives every rank a process, to see at small numbers what that leaves
out.

``driver`` is CPU time of the driver's process with all its threads, which is what grows on a real cluster; the wall
time includes the stubs, which share the machine's cores.

    python benchmarks/rank_stubs.py
    python benchmarks/rank_stubs.py --ranks 8 32 --own-processes
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from controller import GROUP, answer, grpo
from rich.console import Console
from rich.table import Table
from rl_core.batch import SequenceBatch
from rl_core.cluster.heartbeat import Heartbeat, own_heartbeat
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.watchdog import Watchdog, Watched
from rl_core.contracts.backend import Topology, WeightBucket
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelInfo, Role
from rl_core.model import Model
from rl_rollout.router import Router

PHASES = ("sample", "step", "weights")
PROMPT_TOKENS = 16
WEIGHT_BUCKETS = 4


@dataclass
class Measured:
    """One number of ranks; medians over the steps, in seconds.

    Attributes:
        wall, driver: a whole step: elapsed, and CPU of the driver's process.
        phases: CPU of the driver in each part of the step.
        idle: CPU per second of the driver while it waits, which is what watching costs.
        system: CPU a step of Ray's own processes.
    """

    ranks: int
    processes: int
    wall: float = 0.0
    driver: float = 0.0
    idle: float = 0.0
    system: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


class Stubs:
    """A process that answers for some ranks, like :class:`rl_core.cluster.worker.Worker` without a component."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    async def heartbeat(self) -> Heartbeat:
        return own_heartbeat("")

    async def until_death(self) -> None:
        await asyncio.Event().wait()

    async def call(self, method: str, *arguments: Any) -> Any:
        if method == "generate":
            return completions(arguments[0], arguments[1].n, self._tokens)
        return answer(method, *arguments)

    async def call_each(self, method: str, buckets: list[Any], *arguments: Any, while_sampling: bool = False) -> None:
        await asyncio.gather(*buckets)

    async def stream(self, method: str, keep: bool, *arguments: Any) -> list[Any]:
        return [ray.put(_bucket()) for _ in range(WEIGHT_BUCKETS)] if keep else []


class StubPool(WorkerPool):
    """A worker pool over stubs."""

    def use(self, handles: Sequence[Any], names: Sequence[str]) -> None:
        self._watchdog = Watchdog(heartbeat_s=600.0, start_s=600.0)
        for rank, (handle, name) in enumerate(zip(handles, names, strict=True)):
            watched = Watched(f"train-{rank}", "train", handle, self._logs / "none.log")
            watched.actor_id = name  # one per rank, though ranks share a process
            self._watchdog.watch(watched)
        self.trainers = list(handles)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every number of ranks, print a table, write a JSON file; the exit code."""
    options = _parser().parse_args(arguments)
    logging.getLogger("rl").setLevel(logging.ERROR)
    cpus = max(options.ranks) if options.own_processes else options.processes
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=options.object_store_mib * 2**20,
    )
    try:
        results = []
        for ranks in options.ranks:
            results.append(measure(ranks, options))
            Console(width=130).print(table(results))
    finally:
        ray.shutdown()
    if options.output:
        options.output.write_text(json.dumps([vars(r) for r in results], indent=2) + "\n")
    return 0


def measure(ranks: int, options: argparse.Namespace) -> Measured:
    """Start the stubs of ``ranks`` ranks, take steps, and end them."""
    processes = ranks if options.own_processes else min(ranks, options.processes)
    names = [f"{rank:032x}" for rank in range(ranks)]
    stub: Any = ray.remote(Stubs)
    actors = [stub.options(num_cpus=1).remote(options.tokens) for _ in range(processes)]
    ray.get([actor.heartbeat.remote() for actor in actors])
    with tempfile.TemporaryDirectory() as logs:
        pool = StubPool(manifest={}, logs=Path(logs), deadlines=Deadlines(start_s=600, call_s=600))
        pool.use([actors[rank % processes] for rank in range(ranks)], names)
        result = Measured(ranks, processes)
        try:
            _take_steps(result, pool, options)
        finally:
            pool.close()
    return result


def _take_steps(result: Measured, pool: WorkerPool, options: argparse.Namespace) -> None:
    ranks, handles = result.ranks, pool.trainers
    info = ModelInfo(parameters=1, max_length=0, vocab_size=32000)
    topology = [Topology(rank, ranks) for rank in range(ranks)]
    policy = Model(Role("policy", trainable=True), info=info, pool=pool, workers=handles, topology=topology)
    router, algorithm = Router(handles, pool), grpo()
    prompts = requests(ranks * options.sequences_per_rank // GROUP)
    sampling = SamplingParams(n=GROUP, max_new_tokens=options.tokens)
    system = [p for p in psutil.Process().children(recursive=True) if p.name() in ("raylet", "gcs_server")]
    walls, drivers, phases = [], [], []
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            before = _cpu(system)
        started, clock = time.perf_counter(), Clock()
        batch = router.generate(prompts, sampling)
        clock.lap("sample")
        algorithm.step(with_rewards(batch), {"policy": policy})
        clock.lap("step")
        router.update_weights(policy.weight_references(), step)
        clock.lap("weights")
        walls.append(time.perf_counter() - started)
        drivers.append(sum(clock.laps.values()))
        phases.append(clock.laps)
    measured = slice(options.warmup, None)
    result.system = (_cpu(system) - before) / options.steps
    result.wall, result.driver = statistics.median(walls[measured]), statistics.median(drivers[measured])
    result.phases = {name: statistics.median(lap[name] for lap in phases[measured]) for name in PHASES}
    idle = time.process_time()
    time.sleep(options.idle)
    result.idle = (time.process_time() - idle) / options.idle


class Clock:
    """CPU of this process between laps."""

    def __init__(self) -> None:
        self._last = time.process_time()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.laps[name], self._last = now - self._last, now


def requests(count: int) -> SequenceBatch:
    """Prompts for one step."""
    tokens = np.arange(count * PROMPT_TOKENS, dtype=np.int32) % 32000
    return SequenceBatch(tokens, np.arange(count + 1, dtype=np.int64) * PROMPT_TOKENS)


def completions(prompts: SequenceBatch, n: int, tokens: int) -> SequenceBatch:
    """An answer of a generator, with nothing in it."""
    sequences = len(prompts) * n
    total = sequences * tokens
    return SequenceBatch(
        np.zeros(total, np.int32),
        np.arange(sequences + 1, dtype=np.int64) * tokens,
        {
            "loss_mask": np.ones(total, np.float32),
            "sampled_logprobs": np.zeros(total, np.float32),
            "weights_version": np.zeros(total, np.int32),
        },
        {
            "request": np.repeat(np.arange(len(prompts), dtype=np.int64), n),
            "sample": np.tile(np.arange(n, dtype=np.int64), len(prompts)),
            "truncated": np.zeros(sequences, bool),
            "prompt_length": np.full(sequences, PROMPT_TOKENS, np.int64),
        },
    )


def with_rewards(batch: SequenceBatch) -> SequenceBatch:
    """The batch as rewards leave it."""
    rewards = (np.arange(len(batch)) % 2).astype(np.float32)
    return batch.with_columns(sequence={"group": batch.sequence_columns["request"], "reward": rewards})


def table(results: Sequence[Measured]) -> Table:
    """Milliseconds of every number of ranks."""
    shown = Table(title="Milliseconds a step", title_justify="left")
    for column in ("ranks", "processes", "wall", "driver", *PHASES, "driver/rank", "Ray", "watching, % of a core"):
        shown.add_column(column, justify="right")
    for r in results:
        shown.add_row(
            f"{r.ranks}",
            f"{r.processes}",
            *(f"{1e3 * value:.1f}" for value in (r.wall, r.driver, *(r.phases[name] for name in PHASES))),
            f"{1e3 * r.driver / r.ranks:.2f}",
            f"{1e3 * r.system:.1f}",
            f"{100 * r.idle:.1f}",
        )
    return shown


def _bucket() -> WeightBucket:
    return WeightBucket(names=("w",), shapes=((1024,),), dtypes=("uint8",), data=np.zeros(1024, np.uint8))


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--processes", type=int, default=8, help="that the ranks share")
    parser.add_argument("--own-processes", action="store_true", help="a process for every rank (about 60 MB each)")
    parser.add_argument("--sequences-per-rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=5, help="the median of as many is shown")
    parser.add_argument("--warmup", type=int, default=2, help="steps before")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds to wait for what watching costs")
    parser.add_argument("--object-store-mib", type=int, default=1024)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
