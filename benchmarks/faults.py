"""How long a run takes to notice a fault and to go on, and whether anything is lost.

Trains a tiny model with GRPO twice on Ray workers on the CPU: undisturbed, and while its workers are killed (SIGKILL)
and stopped (SIGSTOP), each several times. The two runs must have the same metrics, step by step, and the same weights
to the last bit. Then a reward that hangs is scored in a process with a deadline.

    python benchmarks/faults.py
    python benchmarks/faults.py --rounds 5 --output faults.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rl_core.contracts.reward import Sample
from rl_core.training.api import run
from rl_reward_rule.config import FunctionConfig
from rl_rollout.rewards.isolated import RewardProcess
from rl_rollout.rewards.outcomes import Failure

HERE = Path(__file__).resolve().parent
HEARTBEAT_S = 10
REWARD_TIMEOUT_S = 2.0
FAULTS = (
    ("SIGKILL", "generate-0"),
    ("SIGKILL", "train-0"),
    ("SIGSTOP", "generate-0"),
    ("SIGSTOP", "train-0"),
)
NOTICED = ("a generator is lost", "failure ")
CONFIG = """\
run: {{name: faults, directory: {run}, steps: {steps}, cpus: 2, checkpoint_every: 2, max_failures: null}}
model:
  init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, kv_heads: 1, ffn: 64}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
generator: {{name: hf, max_new_tokens: 4}}
algorithm: {{name: grpo, prompts_per_step: 4, group_size: 4, learning_rate: 1.0e-3}}
data: {{name: python, function: {examples}/add2x.py:questions}}
rewards:
  - name: function
    function: {here}/faults_reward.py:ones
    arguments: {{run: {run}, faults: {faults}}}
"""


class Noticed(logging.Handler):
    """When the run said that it noticed a fault (seconds since the epoch)."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(NOTICED):
            self.times.append(record.created)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write a JSON file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each fault is injected (default: 3)")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    # Every third batch, so that the run has always recovered from the fault before.
    faults = {str(3 * (n + 1)): list(fault) for n, fault in enumerate(FAULTS * options.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        steps = 3 * len(faults) + 2  # each batch is scored at least once
        whole, _ = train(Path(folder) / "whole", steps, {})
        broken, noticed = train(Path(folder) / "broken", steps, faults)
        results = {
            "faults": timings(broken, noticed),
            "same metrics": comparable(whole) == comparable(broken),
            "same weights": exported(whole) == exported(broken),
            "steps": len(comparable(broken)),
            "steps trained again": len(lines(broken / "metrics.discarded.jsonl")),
            "reward": hanging_reward(options.rounds),
        }
    console = Console(width=110)
    console.print(table(results))
    console.print({key: value for key, value in results.items() if key != "faults"})
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results["same metrics"] and results["same weights"] else 1


def train(directory: Path, steps: int, faults: Mapping[str, Any]) -> tuple[Path, list[float]]:
    """The run directory, and when faults were noticed."""
    text = CONFIG.format(
        run=directory, steps=steps, here=HERE, examples=HERE.parent / "examples", faults=json.dumps(faults)
    )
    config = directory.with_suffix(".yaml")
    config.write_text(text)
    handler = Noticed()
    logging.getLogger("rl").addHandler(handler)
    logging.getLogger("rl_core").addHandler(handler)
    code = run(str(config), [f"run.heartbeat_timeout={HEARTBEAT_S}"])
    for name in ("rl", "rl_core"):
        logging.getLogger(name).removeHandler(handler)
    if code:
        raise SystemExit(f"the run ended with {code}")
    return directory, handler.times


def timings(directory: Path, noticed: Sequence[float]) -> list[dict[str, Any]]:
    """Of each fault: seconds until it was noticed, and from then to the next scored batch."""
    calls = lines(directory / "calls.jsonl")
    found = []
    for call, after in itertools.pairwise(calls):
        if call["fault"] is not None:
            seen = min(at for at in noticed if at > call["injected"])
            name, worker = call["fault"]
            waited = HEARTBEAT_S if name == "SIGSTOP" else 0
            detection, recovery = seen - call["injected"] - waited, after["scored"] - seen
            found.append({"fault": f"{name} {worker}", "noticed_s": detection, "recovery_s": recovery})
    return found


def hanging_reward(rounds: int) -> dict[str, list[float]]:
    """Seconds beyond its deadline until a hanging reward was ended, and from then to the next score."""
    config = FunctionConfig(name="function", function=f"{HERE}/faults_reward.py:hangs", timeout_s=REWARD_TIMEOUT_S)
    process = RewardProcess(
        who="reward",
        reference="rl_reward_rule.function:FunctionReward",
        package="rl-reward-rule",
        config=config,
    )
    found: dict[str, list[float]] = {"ended_late_by_s": [], "next_score_after_s": []}
    process.attempt([Sample(row={}, prompt="", completion="")])
    for _ in range(rounds):
        started = time.monotonic()
        outcome = process.attempt([Sample(row={}, prompt="", completion="hang")])
        ended = time.monotonic()
        if not (isinstance(outcome, Failure) and outcome.late):
            raise SystemExit(f"the reward did not hang: {outcome}")
        process.attempt([Sample(row={}, prompt="", completion="")])
        found["ended_late_by_s"].append(ended - started - REWARD_TIMEOUT_S)
        found["next_score_after_s"].append(time.monotonic() - ended)
    process.close()
    return found


def comparable(directory: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock, or tells of the faults themselves."""
    own = ("rollout/retried_requests", "run/failures")
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k and k not in own}
        for row in lines(directory / "metrics.jsonl")
    ]


def exported(directory: Path) -> bytes:
    return (directory / "export" / "model.safetensors").read_bytes()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(results: Mapping[str, Any]) -> Table:
    """Medians with the smallest and the largest."""
    made = Table(
        title=f"Faults and recovery (s), less the heartbeat_timeout of {HEARTBEAT_S} s where stopped",
        title_justify="left",
    )
    for column in ("fault", "times", "noticed after", "then going on after"):
        made.add_column(column)
    for fault in dict.fromkeys(one["fault"] for one in results["faults"]):
        own = [one for one in results["faults"] if one["fault"] == fault]
        made.add_row(fault, str(len(own)), *(spread([one[key] for one in own]) for key in ("noticed_s", "recovery_s")))
    return made


def spread(values: Sequence[float]) -> str:
    """``median (smallest to largest)``."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
