"""Comparisons as a picture: a bar for each ratio, with its spread and target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compare.ratios import Comparison
from compare.workloads import SIZES

_COLOURS = dict(zip(SIZES, ("#56b4e9", "#0072b2", "#004166"), strict=True))


def draw(comparisons: Sequence[Comparison], target: Path, *, peer: str) -> Path:
    """Write the speed ratios of what is not void as an image, in the format that ``target``'s name says."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [c for c in comparisons if not c.void][::-1]
    figure, axes = plt.subplots(figsize=(8.5, 1.2 + 0.26 * len(shown)), constrained_layout=True)
    for place, one in enumerate(shown):
        speed = one.speed
        spread = [[speed.median - speed.low], [speed.high - speed.median]]
        axes.barh(place, speed.median, xerr=spread, color=_COLOURS[one.case.size], height=0.7, ecolor="#333333")
        if one.target is not None:
            axes.plot([one.target] * 2, [place - 0.42, place + 0.42], color="#d55e00", lw=2.5)
        axes.text(speed.high + 0.04, place, f"{speed.median:.2f}×", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [_label(one) for one in shown], fontsize=8)
    axes.axvline(1.0, color="#999999", lw=1)
    axes.set(xlabel=f"throughput, this project : {peer} (orange: target)", ylim=(-0.6, len(shown) - 0.4))
    axes.set_xlim(0, 1.15 * max((c.speed.high for c in shown), default=1.0))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def _label(comparison: Comparison) -> str:
    case = comparison.case
    return f"{case.workload}  {case.size}  {case.precision}  {case.threads} thr."
