"""This project as a system: the config that ``rl run`` is started with, and what its metrics say afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rl_core.data.cursor import DataCursor

from compare.workloads import Job, Workload, read_rows

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def command(job: Job, folder: Path, *, samples: bool = False) -> list[str]:
    """The command that runs ``job``; its config and data are written to ``folder``.

    Args:
        samples: write all completions to ``samples.jsonl`` (see :attr:`compare.workloads.Job.replay`).
    """
    data = folder / "rows-shuffled.jsonl"
    rows = read_rows(job.rows)
    order = DataCursor(size=len(rows), seed=0).draw(len(rows))
    placed = dict(zip(order.tolist(), rows, strict=True))
    # The run shuffles its rows: put where the shuffle looks for them, they come out in the order of the job.
    data.write_text("".join(json.dumps(placed[i]) + "\n" for i in range(len(rows))))
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(_config(job, folder, data, samples=samples), sort_keys=False))
    return [str(Path(sys.executable).with_name("rl")), "run", str(config)]


def run_directory(folder: Path) -> Path:
    """Where the run of :func:`command` writes."""
    return folder / "run"


def progress_file(folder: Path) -> Path:
    """The file that grows by a line as each step ends."""
    return run_directory(folder) / "metrics.jsonl"


def step_numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``metrics.jsonl`` under the names of :class:`compare.progress.Progress`, and its times."""
    return {
        "step": line["step"],
        "loss": line["train/loss"],
        "grad_norm": line["train/grad_norm"],
        "tokens": round(line["train/tokens"]),
        "trained_tokens": round(line["train/loss_tokens"]),
        "sequences": round(line["train/sequences"]),
        "times": {name: value for name, value in line.items() if name.startswith("time/")},
    }


def _config(job: Job, folder: Path, data: Path, *, samples: bool) -> dict[str, Any]:
    shape = job.shape
    config = {
        "run": {
            "name": job.workload,
            "directory": str(run_directory(folder)),
            "steps": job.steps,
            "cpus": job.threads,
            "samples_per_step": shape.sequences if samples else 0,
        },
        "model": {"path": job.model, "max_length": 512},
        "tokenizer": {"name": "hf"},
        "backend": {"name": "fsdp2", "precision": job.precision},
        "algorithm": {"learning_rate": shape.learning_rate, **_algorithm(shape)},
        "data": {"name": "jsonl", "path": str(data)},
    }
    if shape.kind == "grpo":
        config["generator"] = {
            "name": "hf",
            "max_new_tokens": shape.completions[1],
            "dtype": DTYPES[job.precision],
        }
        config["rewards"] = [{"name": "function", "function": f"{__file__}:rewards"}]
    return config


def _algorithm(shape: Workload) -> dict[str, Any]:
    if shape.kind == "sft":
        return {"name": "sft", "sequences_per_step": shape.rows}
    if shape.kind in ("dpo", "rm"):
        return {"name": {"dpo": "dpo", "rm": "rm"}[shape.kind], "pairs_per_step": shape.rows}
    return {
        "name": "grpo",
        "prompts_per_step": shape.rows,
        "group_size": shape.group_size,
        "advantage_scale": "none",
        "loss_reduction": "token",
        "kl": {"coefficient": shape.beta},
    }


def rewards(samples: Any) -> list[float]:
    """The reward function of the run."""
    from compare.workloads import share_of_odd_characters

    return [share_of_odd_characters(sample.completion) for sample in samples]
