"""Draws docs/figures/choosing-an-algorithm.png from a run of examples/compare.yaml.

python docs/figures/choosing_an_algorithm.py runs/compare
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ["#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]
TARGET = Path(__file__).with_name("choosing-an-algorithm.png")


def curves(run: Path) -> dict[str, tuple[list[int], list[float], float]]:
    """stage → (steps, held-out accuracy in percent, median seconds of a step without its evaluation)"""
    found: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps, accuracy, seconds = found.setdefault(row["stage"], ([], [], []))
        if "eval/accuracy" in row:
            steps.append(row["step"])
            accuracy.append(100 * row["eval/accuracy"])
        if row["step"]:
            seconds.append(row["time/step_s"] - row.get("time/eval_s", 0.0))
    return {stage: (s, a, sorted(t)[len(t) // 2]) for stage, (s, a, t) in found.items() if stage != "sft"}


def main(run: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.5, 4.8), constrained_layout=True)
    for colour, (stage, (steps, accuracy, seconds)) in zip(COLOURS, curves(run).items(), strict=True):
        axes.plot(
            steps, accuracy, color=colour, lw=2, marker="o", ms=4, label=f"{stage}  ({1000 * seconds:.0f} ms/step)"
        )
    axes.set(xlabel="training step", ylabel="held-out accuracy (%)", ylim=(55, 101.5), xlim=(-1, 61))
    axes.set_title("Two-digit addition, from the same supervised start", loc="left", fontweight="bold")
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(TARGET, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
