from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from rl_core.contracts.logger import RunInfo
from rl_logger_plot.config import PlotConfig
from rl_logger_plot.logger import PlotLogger, plot_run

PNG = b"\x89PNG\r\n\x1a\n"


def info(directory: Path) -> RunInfo:
    return RunInfo(
        run="demo",
        directory=str(directory),
        stage="train",
        stages=("train",),
        total_steps=4,
        first_step=1,
        config={},
    )


def write_metrics(directory: Path) -> None:
    rows = [{"step": s, "stage": "train", "train/loss": 1 / s, "eval/accuracy": s / 4} for s in range(1, 5)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_picture_is_drawn_when_the_run_ends(tmp_path):
    logger = PlotLogger(PlotConfig(name="plot"))
    logger.start(info(tmp_path))
    write_metrics(tmp_path)
    logger.log(1, {"train/loss": 1.0})
    logger.log_samples(1, [])
    assert not (tmp_path / "curves.png").exists()
    logger.close()
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_it_is_drawn_during_the_run_where_asked(tmp_path):
    logger = PlotLogger(PlotConfig(name="plot", every=2, file="loss.svg"))
    logger.start(info(tmp_path))
    write_metrics(tmp_path)
    logger.log(0, {})
    logger.log(1, {})
    assert not (tmp_path / "loss.svg").exists()
    logger.log(2, {})
    assert "<svg" in (tmp_path / "loss.svg").read_text()


def test_closing_without_a_start_draws_nothing(tmp_path):
    PlotLogger(PlotConfig(name="plot")).close()
    assert list(tmp_path.iterdir()) == []


def test_without_metrics_it_says_which_logger_is_missing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert plot_run(tmp_path, tmp_path / "curves.png", title="demo") is False
    assert caplog.messages == [
        f"{tmp_path}/metrics.jsonl does not exist, so there is nothing to plot; add {{name: jsonl}} to loggers"
    ]


def test_metrics_without_a_panel_leave_no_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "train", "time/step_s": 1.0}\n')
    assert plot_run(tmp_path, tmp_path / "curves.png", title="demo") is False
    assert not (tmp_path / "curves.png").exists()


def test_a_file_name_is_a_name_with_a_known_ending():
    for bad in ("curves.gif", "../curves.png", "a/b.png"):
        with pytest.raises(ValidationError):
            PlotConfig(name="plot", file=bad)


def test_matplotlib_is_loaded_only_to_draw_and_needs_no_screen():
    code = (
        "import sys, rl_logger_plot.plugin, rl_logger_plot.config, rl_logger_plot.logger, rl_logger_plot.figure\n"
        "print({'matplotlib', 'torch'} & set(sys.modules))\n"
        "from rl_logger_plot.history import StageHistory\n"
        "rl_logger_plot.figure.draw([StageHistory('a', {'train/loss': {1: 1.0}})], title='x')\n"
        "print({'matplotlib.pyplot', 'torch'} & set(sys.modules), 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset() True\n"
