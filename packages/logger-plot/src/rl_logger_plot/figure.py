"""The picture: loss, reward and held-out accuracy over the steps of a run.

Stages follow one another on one axis. Each has steps of its own width there, because a stage of
50 steps after one of 2,000 would otherwise be a sliver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_logger_plot.history import StageHistory
from rl_logger_plot.smoothing import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: colour-blind readers can distinguish them. They are in this order of contrast.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#333333"
_FAINT = "#8a8a8a"
_MARKERS_UP_TO = 40
_SMOOTH_FROM = 60


@dataclass(frozen=True)
class Panel:
    """One axis of the picture.

    Attributes:
        title: its heading.
        line: the metric drawn as a line, smoothed where there are many points.
        points: a held-out metric drawn as a line with markers.
        spread: the metric drawn as a band of ± its value around ``line``.
        unit_interval: values are shares, shown in percent on 0 to 1.
    """

    title: str
    line: str | None = None
    points: str | None = None
    spread: str | None = None
    unit_interval: bool = False


PANELS = (
    Panel("Loss", line="train/loss", points="eval/loss"),
    Panel("Reward (mean ± standard deviation)", line="rollout/reward_mean", spread="rollout/reward_std"),
    Panel("Held-out accuracy", points="eval/accuracy", unit_interval=True),
)


@dataclass(frozen=True)
class Span:
    """A stage's place on the common axis, which runs from 0 to 1.

    Attributes:
        stage: what is drawn there.
        left: where its step 0 is.
        width: how far from there its last step is.
        colour: of everything that belongs to it.
    """

    stage: StageHistory
    left: float
    width: float
    colour: str

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Steps of the stage to positions on the axis."""
        return self.left + self.width * steps / max(self.stage.steps, 1)


def lay_out(stages: Sequence[StageHistory]) -> list[Span]:
    """Widths in proportion to the number of steps, but none much below 0.7 of an equal share."""
    total = sum(stage.steps for stage in stages) or 1
    shares = [max(stage.steps / total, 0.7 / len(stages)) for stage in stages]
    widths = [share / sum(shares) for share in shares]
    lefts = np.concatenate([[0.0], np.cumsum(widths)])
    return [
        Span(stage, float(left), width, _COLOURS[index % len(_COLOURS)])
        for index, (stage, left, width) in enumerate(zip(stages, lefts, widths, strict=False))
    ]


def draw(stages: Sequence[StageHistory], *, title: str) -> Figure | None:
    """Draw the panels there are values for; None if there are none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(_has_values(panel, stage) for stage in stages)]
    if not panels:
        return None
    figure = Figure(figsize=(9, 1.0 + 2.5 * len(panels)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=_INK)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    spans = lay_out(stages)
    for panel, axis in zip(panels, axes, strict=True):
        _draw_panel(axis, panel, spans)
    _label_steps(axes[-1], spans)
    if len(stages) > 1:
        _name_stages(axes[0], spans)
    return figure


def _has_values(panel: Panel, stage: StageHistory) -> bool:
    metrics = [metric for metric in (panel.line, panel.points) if metric is not None]
    return any(np.isfinite(stage.curve(metric)[1]).any() for metric in metrics)


def _draw_panel(axis: Axes, panel: Panel, spans: Sequence[Span]) -> None:
    for span in spans:
        if panel.line is not None:
            _draw_line(axis, panel, span)
        if panel.points is not None:
            _draw_points(axis, panel, span)
        if span.left:
            axis.axvline(span.left, color=_FAINT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    _style(axis, panel)
    if panel.line is not None and panel.points is not None:
        _explain(axis, panel, spans)


def _draw_points(axis: Axes, panel: Panel, span: Span) -> None:
    steps, y = span.stage.curve(panel.points or "")
    if not len(steps):
        return
    x, dashes = span.at(steps), "--" if panel.line is not None else "-"
    style: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "markeredgewidth": 1.4}
    axis.plot(x, y, dashes, color=span.colour, **style)
    if panel.unit_interval:
        _name_last(axis, x, y, span.colour)


def _draw_line(axis: Axes, panel: Panel, span: Span) -> None:
    steps, y = span.stage.curve(panel.line or "")
    x = span.at(steps)
    many = len(x) >= _SMOOTH_FROM
    mean = smooth(y) if many else y
    if panel.spread is not None:
        spread_steps, spread = span.stage.curve(panel.spread)
        if np.array_equal(spread_steps, steps):
            spread = smooth(spread) if many else spread
            axis.fill_between(x, mean - spread, mean + spread, color=span.colour, alpha=0.12, linewidth=0)
    if many:
        axis.plot(x, y, color=span.colour, linewidth=0.7, alpha=0.3)
    axis.plot(x, mean, color=span.colour, linewidth=1.8, marker="." if len(x) <= _MARKERS_UP_TO else None)


def _label_steps(axis: Axes, spans: Sequence[Span]) -> None:
    """Ticks at round steps of each stage; a later stage's step 0 is where the one before it ends."""
    from matplotlib.ticker import MaxNLocator

    places: list[float] = []
    labels: list[str] = []
    for span in spans:
        locator = MaxNLocator(nbins=1 + round(8 * span.width), integer=True, steps=[1, 2, 5, 10])
        steps = np.asarray(locator.tick_values(0, span.stage.steps))
        steps = steps[(steps <= span.stage.steps) & (steps >= (0 if span.left == 0 else 1))]
        places.extend(span.at(steps))
        labels.extend(f"{step:,.0f}" for step in steps)
    axis.set_xticks(places, labels)
    axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel("step of the stage" if len(spans) > 1 else "step", color=_INK)


def _style(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title, loc="left", fontsize=11, color=_INK)
    axis.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#bbbbbb")
    axis.tick_params(colors=_INK, labelsize=9)
    if panel.unit_interval:
        from matplotlib.ticker import PercentFormatter

        axis.set_ylim(-0.03, 1.05)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _name_last(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Write the last value next to its point."""
    finite = np.flatnonzero(np.isfinite(y))
    if len(finite):
        last = finite[-1]
        below = y[last] > 0.85
        axis.annotate(
            f"{100 * y[last]:.1f} %",
            (x[last], y[last]),
            xytext=(-6, -17 if below else 8),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            fontweight="bold",
            color=colour,
        )


def _explain(axis: Axes, panel: Panel, spans: Sequence[Span]) -> None:
    """A legend for solid and dashed, where a panel has both."""
    from matplotlib.lines import Line2D

    both = all(any(len(span.stage.curve(metric or "")[0]) for span in spans) for metric in (panel.line, panel.points))
    if not both:
        return
    circle: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
    handles = [
        Line2D([], [], color=_INK, linewidth=1.8, label="training"),
        Line2D([], [], color=_INK, linestyle="--", label="held out", **circle),
    ]
    axis.legend(handles=handles, loc="best", fontsize=9, frameon=False)


def _name_stages(axis: Axes, spans: Sequence[Span]) -> None:
    """Each stage's name above its part of the topmost panel."""
    for span in spans:
        axis.annotate(
            span.stage.name,
            (span.left + span.width / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=10,
            fontweight="bold",
            color=span.colour,
        )
