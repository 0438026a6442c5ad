"""Runs both systems in turns, one seed after the other: ``hatch run bench:accuracy``.

Wall time counts from the start of the process, with imports, Ray's start and everything else, and again from the end of
the first optimizer step. Both measure held-out accuracy at the same steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compare import machine
from compare.systems import find_trl_python
from rl_data_text.config import CharactersConfig
from rl_data_text.tokenizers.characters import CharacterTokenizer

from time_to_accuracy.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "quickstart.yaml"
TARGET = 0.97
MOST = 0.6
"""Of TRL's time."""

_LOOK_S = 0.005


def main() -> int:
    """Print a table and write the numbers."""
    given = _parser().parse_args()
    python = given.trl_python or os.environ.get("BENCH_TRL_PYTHON") or find_trl_python(ROOT)
    busy = machine.wait_until_quiet(machine.QUIET_CORES, patience_s=given.patience)
    if busy > machine.QUIET_CORES and not given.busy:
        sys.exit(f"{busy:.1f} cores are busy with other work; stop it, or measure all the same (--busy)")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            recipe = _prepare(folder, seed, given.threads)
            systems = {
                "rl": _ours(folder, recipe),
                "trl": ([python, "-m", "time_to_accuracy.trl_runner"], recipe.progress),
            }
            systems["trl"][0].append(str(recipe.write(folder / "recipe.json")))
            for system, (command, progress) in systems.items():
                found = {
                    "seed": seed,
                    "system": system,
                    **_run(command, Path(progress), folder / f"{system}.log", recipe),
                }
                results.append(found)
                print(_line(found), flush=True)
    given.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    return 0


def _prepare(folder: Path, seed: int, threads: int) -> Recipe:
    """Data and tokenizer for TRL; this project makes them itself."""
    sys.path.insert(0, str(EXAMPLE.parent))
    import add2x  # type: ignore[import-not-found]

    rows = {
        "demonstrations": list(add2x.demonstrations()),
        "questions": list(add2x.questions()),
        "held_out": list(add2x.questions("held_out")),
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    tokenizer = CharacterTokenizer(CharactersConfig(name="characters", vocab_size=Recipe.vocabulary))
    tokenizer.load(None, rows["demonstrations"])
    tokenizer.save(str(folder / "tokenizer"))
    files: dict[str, Any] = {name: str(folder / f"{name}.jsonl") for name in rows}
    progress = str(folder / "progress.jsonl")
    return Recipe(seed=seed, threads=threads, tokenizer=str(folder / "tokenizer"), progress=progress, **files)


def _ours(folder: Path, recipe: Recipe) -> tuple[list[str], str]:
    run = folder / "run"
    settings = [f"run.seed={recipe.seed}", f"run.cpus={recipe.threads}", f"run.directory={run}"]
    return [str(Path(sys.executable).with_name("rl")), "run", str(EXAMPLE), *settings], str(run / "metrics.jsonl")


def _run(command: Sequence[str], progress: Path, log: Path, recipe: Recipe) -> dict[str, Any]:
    """Seconds until the first step and until the target (None: not reached), and all accuracies."""
    environment = os.environ | {"OMP_NUM_THREADS": str(recipe.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        found: dict[str, Any] = {"first_step_s": None, "target_s": None, "measured": []}
        for line in _lines(progress, process):
            seconds = time.monotonic() - started
            if found["first_step_s"] is None and line["step"]:  # not where accuracy is measured before it
                found["first_step_s"] = seconds
            accuracy = line.get("eval/accuracy", line.get("accuracy"))
            if accuracy is not None:
                found["measured"].append([line["stage"], line["step"], accuracy])
                if accuracy >= TARGET and found["target_s"] is None:
                    found["target_s"] = seconds
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}\n{log.read_text()[-2000:]}")
    return {**found, "all_s": time.monotonic() - started}


def _lines(path: Path, process: subprocess.Popen[bytes]) -> Iterator[Mapping[str, Any]]:
    """JSON lines as they are written, until the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(_LOOK_S)
    if not path.exists():
        return
    with path.open() as file:
        rest = ""
        while True:
            ended = process.poll() is not None  # before the file is looked at for the last time
            rest += file.read()
            *lines, rest = rest.split("\n")
            yield from (json.loads(line) for line in lines)
            if ended:
                return
            time.sleep(_LOOK_S)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: medians, and the ratio of times of the same seed."""
    lines = [
        "",
        "| seconds to 97 % | this project | TRL | ratio, median (least to most) | target |",
        "|---|---|---|---|---|",
    ]
    for text, since in (("from the start of the process", None), ("from the end of the first step", "first_step_s")):
        times = {system: _times([r for r in results if r["system"] == system], since) for system in ("rl", "trl")}
        pairs = zip(times["rl"], times["trl"], strict=True)
        ratios = sorted(math.inf if math.isinf(mine) else mine / other for mine, other in pairs)
        middle, mark = statistics.median(ratios), "✓" if statistics.median(ratios) <= MOST else "✗"
        mine, other = (statistics.median(times[system]) for system in ("rl", "trl"))
        spread = f"**{middle:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"| {text} | {mine:.1f} | {other:.1f} | {spread} | {MOST} {mark} |")
    return "\n".join(lines)


def _times(results: Sequence[Mapping[str, Any]], since: str | None) -> list[float]:
    reached = [r["target_s"] if r["target_s"] is not None else math.inf for r in results]
    return [t - (r[since] if since else 0.0) for t, r in zip(reached, results, strict=True)]


def _line(found: Mapping[str, Any]) -> str:
    accuracies = ", ".join(f"{stage} {step}: {value:.1%}" for stage, step, value in found["measured"])
    reached = "not reached" if found["target_s"] is None else f"{found['target_s']:.1f} s"
    return f"seed {found['seed']} {found['system']}: {TARGET:.0%} after {reached} ({accuracies})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="time_to_accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--threads", type=int, default=1, help="of every process; default: 1, as in the example")
    parser.add_argument("--output", type=Path, default=Path("time-to-accuracy.json"), help="JSON file")
    parser.add_argument("--busy", action="store_true", help="do not insist on a quiet machine")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for one")
    parser.add_argument("--trl-python", help="interpreter with TRL; default: the hatch environment bench-trl")
    return parser


if __name__ == "__main__":
    sys.exit(main())
