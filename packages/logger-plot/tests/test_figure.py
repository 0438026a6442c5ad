from __future__ import annotations

import numpy as np
import pytest
from rl_logger_plot.figure import draw, lay_out
from rl_logger_plot.history import StageHistory
from rl_logger_plot.smoothing import smooth


def stage(name: str, **series: dict[int, float]) -> StageHistory:
    return StageHistory(name, {metric.replace("__", "/"): values for metric, values in series.items()})


def titles(figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_panels_without_values_are_left_out():
    only_loss = [stage("sft", train__loss={1: 2.0, 2: 1.0})]
    assert titles(draw(only_loss, title="demo")) == ["Loss"]
    everything = [stage("train", train__loss={1: 0.1}, rollout__reward_mean={1: 0.5}, eval__accuracy={0: 0.5, 1: 0.75})]
    assert titles(draw(everything, title="demo")) == [
        "Loss",
        "Reward (mean ± standard deviation)",
        "Held-out accuracy",
    ]


def test_nothing_to_draw_gives_no_figure():
    assert draw([], title="demo") is None
    assert draw([stage("train", train__grad_norm={1: 1.0})], title="demo") is None
    assert draw([stage("train", train__loss={1: float("nan")})], title="demo") is None


def test_each_stage_has_its_name_and_its_colour():
    stages = [stage("sft", train__loss={1: 2.0, 2: 1.0}), stage("grpo", train__loss={1: 0.0, 2: 0.1})]
    (axis,) = draw(stages, title="demo").axes
    names = {text.get_text(): text.get_color() for text in axis.texts}
    assert list(names) == ["sft", "grpo"]
    curves = {line.get_color() for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.8}
    assert curves == set(names.values())


def test_stages_follow_one_another_with_a_line_between():
    stages = [stage("sft", train__loss={1: 2.0, 4: 1.0}), stage("grpo", train__loss={1: 0.0, 4: 0.1})]
    (axis,) = draw(stages, title="demo").axes
    positions = [line.get_xdata().tolist() for line in axis.lines if line.get_linewidth() == 1.8]
    assert positions == [[0.125, 0.5], [0.625, 1.0]]
    assert [list(line.get_xdata()) for line in axis.lines if line.get_linestyle() == "--"] == [[0.5, 0.5]]


def test_a_short_stage_stays_readable_beside_a_long_one():
    long, short = lay_out([stage("sft", train__loss={2000: 1.0}), stage("grpo", train__loss={50: 1.0})])
    assert short.width > 0.25
    assert long.width + short.width == pytest.approx(1.0)
    assert short.left == long.width
    assert short.at(np.array([0, 50])).tolist() == pytest.approx([long.width, 1.0])


def test_ticks_are_round_steps_of_each_stage():
    stages = [stage("sft", train__loss={2000: 1.0}), stage("grpo", train__loss={50: 1.0})]
    figure = draw(stages, title="demo")
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == ["0", "500", "1,000", "1,500", "2,000", "20", "40"]
    assert figure.axes[-1].get_xlabel() == "step of the stage"


def test_the_last_accuracy_is_written_beside_its_point():
    figure = draw([stage("train", eval__accuracy={0: 0.582, 50: 0.992})], title="demo")
    assert [text.get_text() for text in figure.axes[0].texts] == ["99.2 %"]


def test_held_out_loss_is_explained_where_both_are_drawn():
    both = draw([stage("sft", train__loss={1: 2.0}, eval__loss={1: 2.1})], title="demo")
    one = draw([stage("sft", train__loss={1: 2.0})], title="demo")
    assert [text.get_text() for text in both.axes[0].get_legend().get_texts()] == ["training", "held out"]
    assert one.axes[0].get_legend() is None


def test_smoothing_keeps_a_straight_line_and_its_ends():
    line = np.linspace(3.0, 5.0, 400)
    np.testing.assert_allclose(smooth(line), line)


def test_smoothing_calms_noise_and_passes_over_gaps():
    noise = np.random.default_rng(0).normal(size=1000)
    noise[500] = np.nan
    calm = smooth(noise)
    assert np.isfinite(calm).all()
    assert calm[50:-50].std() < 0.4 * np.nanstd(noise)
