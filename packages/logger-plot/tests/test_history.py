from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from rl_logger_plot.history import read_history


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_stages_keep_their_order_and_their_own_steps(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 1, "stage": "sft", "train/loss": 2.0},
        {"step": 2, "stage": "sft", "train/loss": 1.0},
        {"step": 0, "stage": "grpo", "eval/accuracy": 0.5},
        {"step": 1, "stage": "grpo", "train/loss": 0.0},
    )
    sft, grpo = read_history(path)
    assert (sft.name, sft.steps, grpo.name, grpo.steps) == ("sft", 2, "grpo", 1)
    assert [curve.tolist() for curve in sft.curve("train/loss")] == [[1, 2], [2.0, 1.0]]
    assert [curve.tolist() for curve in grpo.curve("eval/accuracy")] == [[0], [0.5]]
    assert [curve.tolist() for curve in grpo.curve("eval/loss")] == [[], []]


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 1, "stage": "train", "train/loss": 3.0},
        {"step": 2, "stage": "train", "train/loss": 9.0},
        {"step": 2, "stage": "train", "train/loss": 2.0},
    )
    (train,) = read_history(path)
    assert train.curve("train/loss")[1].tolist() == [3.0, 2.0]


def test_null_is_not_a_number(tmp_path):
    (train,) = read_history(write(tmp_path / "metrics.jsonl", {"step": 1, "stage": "train", "train/loss": None}))
    assert np.isnan(train.curve("train/loss")[1]).tolist() == [True]


def test_a_line_that_a_crash_cut_short_is_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path / "metrics.jsonl", {"step": 1, "stage": "train", "train/loss": 3.0})
    with path.open("a") as file:
        file.write('{"step": 2, "sta')
    with caplog.at_level(logging.WARNING):
        (train,) = read_history(path)
    assert train.steps == 1
    assert caplog.messages == [f"{path}: 1 line(s) are not metrics and were left out"]


def test_a_missing_file_has_no_stages(tmp_path):
    assert read_history(tmp_path / "metrics.jsonl") == []
