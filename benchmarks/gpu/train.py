"""Tokens a second, model FLOPs utilisation and peak memory of training steps on a GPU.

``python benchmarks/gpu/train.py`` measures SFT and GRPO steps of two Qwen2-shaped models with random weights in
bfloat16, on sequences of 4,096 tokens. ``key=value`` arguments set fields of the backend's section:

    python benchmarks/gpu/train.py --size 1.5b activation_checkpointing=selective
    python benchmarks/gpu/train.py --gpus 8 parallel.tp=2
    python benchmarks/gpu/train.py --device cpu --size tiny     # does it run? no GPU needed

See docs/performance.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shlex
import socket
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rl_backend_fsdp2.config import Fsdp2Config

if __name__ in ("__main__", "__mp_main__"):  # as a script, and in the processes that it starts
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpu.flops import peak_flops
from gpu.steps import GROUP_SIZE, Job, Measurement, serve
from gpu.timing import SIZES, Size

PACKAGES = ("rl-backend-fsdp2", "rl-torch", "torch", "transformers", "numpy")


class RankFailed(RuntimeError):
    """A rank ended with an exception; the message has its text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write a JSON file; the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(width=max(100, Console().width))
    errors = Console(stderr=True, soft_wrap=True)
    try:
        fields = backend_fields(options.backend)
        jobs = {name: _job(name, options, fields) for name in options.size or ("0.5b", "1.5b")}
    except (ValueError, ValidationError) as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    if options.device == "cuda" and torch.cuda.device_count() < options.gpus:
        seen = torch.cuda.device_count()
        errors.print(f"error: {options.gpus} GPUs wanted, PyTorch sees {seen}\n    add --gpus, or --device cpu")
        return 3
    results, failure = [], None
    for name, job in jobs.items():
        try:
            results += [
                result(name, job, ranks, world=options.gpus, peak_tflops=options.peak_tflops)
                for ranks in zip(*run(job, options.gpus), strict=True)
            ]
        except RankFailed as error:
            failure = f"{name}: {error}"
            break
    if results:
        console.print(table(results))
        options.output.write_text(json.dumps(_report(results, options, fields, arguments), indent=2) + "\n")
        console.print(f"written to {options.output}", markup=False, soft_wrap=True)
    if failure is not None:
        errors.print(f"error: {failure}", markup=False)
        return 1
    return 0


def run(job: Job, world: int) -> list[list[Measurement]]:
    """The measurements of every rank, each in a process of its own.

    Raises:
        RankFailed: one of them failed; the others are ended, since they would wait for it.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    processes, pipes = [], []
    answers: dict[int, list[Measurement]] = {}
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=serve, args=(rank, world, port, job, theirs), daemon=True)
        process.start()
        theirs.close()  # so that a process that dies ends its answers
        processes.append(process)
        pipes.append(ours)
    try:
        while len(answers) < world:
            ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in answers])
            for rank, pipe in enumerate(pipes):
                if pipe in ready:
                    answers[rank] = _answer(pipe, rank)
        return [answers[rank] for rank in range(world)]
    finally:
        for process in processes:
            process.join(10 if len(answers) == world else 0)
            process.kill()


def _answer(pipe: Any, rank: int) -> list[Measurement]:
    try:
        ok, answer = pipe.recv()
    except EOFError:
        raise RankFailed(f"rank {rank} died without a word (killed for memory?)") from None
    if not ok:
        raise RankFailed(answer)
    return answer


def result(
    name: str, job: Job, ranks: Sequence[Measurement], *, world: int, peak_tflops: float | None
) -> dict[str, Any]:
    """One line of the table: a kind of step, over all ranks.

    ``mfu`` is None where the peak of the device is not known: not in the table, or not for this precision.
    """
    first = ranks[0]
    # A step is over when the last rank is done.
    steps = [max(times) for times in zip(*(r.seconds for r in ranks), strict=True)]
    seconds = statistics.median(steps)
    peak = peak_tflops * 1e12 if peak_tflops else None
    if peak is None and job.backend["precision"] != "fp32":
        peak = peak_flops(first.device_name)
    memory = [r.peak_bytes for r in ranks if r.peak_bytes is not None]
    return {
        "model": name,
        "step": first.step,
        "parameters": first.parameters,
        "device": first.device_name,
        "ranks": world,
        "tokens": first.tokens,
        "seconds": steps,
        "median_seconds": seconds,
        "tokens_per_second": first.tokens / seconds,
        "tokens_per_second_per_rank": first.tokens / seconds / world,
        "flops": first.flops,
        "attention_flops": first.attention_flops,
        "peak_flops_per_rank": peak,
        "mfu": first.flops / seconds / (peak * world) if peak else None,
        "peak_bytes_per_rank": max(memory) if memory else None,
        "batch": {k: v for k, v in asdict(job.size).items() if k not in ("init", "max_tokens_per_microbatch")},
        "init": dict(job.size.init),
        "backend": dict(job.backend),
    }


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """For people; numbers that are not known are dashes."""
    first = results[0]
    shown = Table(title=f"{first['ranks']} × {first['device']}", title_justify="left")
    for column in ("model", "step"):
        shown.add_column(column)
    for column in ("parameters", "tokens/step", "seconds", "tokens/s", "per rank", "MFU", "peak GiB"):
        shown.add_column(column, justify="right")
    for line in results:
        mfu, memory = line["mfu"], line["peak_bytes_per_rank"]
        shown.add_row(
            line["model"],
            line["step"],
            f"{line['parameters'] / 1e6:,.1f}M",
            f"{line['tokens']:,}",
            f"{line['median_seconds']:.3f}",
            f"{line['tokens_per_second']:,.0f}",
            f"{line['tokens_per_second_per_rank']:,.0f}",
            "-" if mfu is None else f"{mfu:.1%}",
            "-" if memory is None else f"{memory / 2**30:.2f}",
        )
    return shown


def backend_fields(assignments: Sequence[str]) -> dict[str, Any]:
    """``["parallel.tp=2"]`` → ``{"precision": "bf16", "parallel": {"tp": 2}}``.

    Raises:
        ValueError: not of this form.
    """
    fields: dict[str, Any] = {"precision": "bf16"}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is not of the form field=value; for example compile=true")
        *sections, last = path.split(".")
        inner = fields
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{assignment!r}: {section!r} has no fields")
        inner[last] = yaml.safe_load(value)
    return fields


def _job(name: str, options: argparse.Namespace, fields: Mapping[str, Any]) -> Job:
    size: Size = SIZES[name]
    given = {"sequence_length": options.sequence_length, "sequences": options.sequences}
    size = replace(size, **{key: value for key, value in given.items() if value is not None})
    if options.steps < 1:
        raise ValueError("--steps must be 1 or more")
    if size.sequences % GROUP_SIZE:
        raise ValueError(
            f"--sequences {size.sequences} is not a multiple of {GROUP_SIZE}, the size of a group of completions"
        )
    backend = {"max_tokens_per_microbatch": size.max_tokens_per_microbatch, **fields}
    config = Fsdp2Config.model_validate({"name": "fsdp2", **backend})
    ranks = config.parallel.sizes(options.gpus)
    product = ranks["replicate"] * ranks["dp"] * ranks["cp"] * ranks["tp"]
    if product != options.gpus:
        raise ValueError(f"parallel makes {product} ranks; add --gpus {product}, or leave parallel.dp out")
    return Job(size=size, device=options.device, backend=backend, warmup=options.warmup, steps=options.steps)


def _report(
    results: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    fields: Mapping[str, Any],
    arguments: Sequence[str] | None,
) -> dict[str, Any]:
    """What the numbers depend on, and the numbers."""
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/gpu/train.py", *given]),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "cuda": torch.version.cuda if options.device == "cuda" else None,
        },
        "backend": dict(fields),
        "results": list(results),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", nargs="*", metavar="field=value", help="fields of the section 'backend'")
    parser.add_argument("--size", action="append", choices=list(SIZES), help="model; default: 0.5b and 1.5b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", type=int, default=1, help="ranks, one per GPU (on CPU: processes)")
    parser.add_argument("--sequence-length", type=int, help="tokens; default: 4096 (tiny: 128)")
    parser.add_argument("--sequences", type=int, help="per data-parallel rank and step; default: 16 (tiny: 8)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--peak-tflops", type=float, help="of one GPU, where its name is not in the table")
    parser.add_argument("--output", type=Path, default=Path("gpu-train.json"), help="JSON file with all numbers")
    return parser


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
