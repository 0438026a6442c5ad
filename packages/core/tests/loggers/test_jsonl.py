from __future__ import annotations

import datetime
import errno
import json
import os
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from rl_core.contracts.logger import RunInfo
from rl_core.loggers.config import JsonlConfig
from rl_core.loggers.jsonl import JsonlLogger


def info(directory: Path, stage: str = "train", first_step: int = 1) -> RunInfo:
    return RunInfo(
        run="demo",
        directory=str(directory),
        stage=stage,
        stages=("train",),
        total_steps=10,
        first_step=first_step,
        config={},
    )


@pytest.fixture
def logger():
    logger = JsonlLogger(JsonlConfig(name="jsonl"))
    yield logger
    logger.close()


def test_a_step_is_one_line_with_its_step_and_stage_first(tmp_path, logger):
    logger.start(info(tmp_path, "sft"))
    logger.log(3, {"train/loss": 0.25, "train/tokens": np.int64(7)})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 3, "stage": "sft", "train/loss": 0.25, "train/tokens": 7}\n'
    )


def test_columns_of_any_type_are_written_as_json(tmp_path, logger):
    logger.start(info(tmp_path))
    row = {
        "price": Decimal("5.00"),
        "day": datetime.date(2024, 1, 5),
        "at": datetime.datetime(2024, 1, 5, 12, 30),
        "raw": b"abc",
        "flag": True,
        "large": 2**80,
        "huge": 10**5000,
        "array": np.array([[1, 2]]),
        "nested": {1: [np.float32(0.5), {"x": float("nan")}, ("a", None)]},
        "set": {1},
        "half": "\ud800",
    }
    logger.log_samples(1, [row])
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {
        "step": 1,
        "stage": "train",
        "price": "5.00",
        "day": "2024-01-05",
        "at": "2024-01-05T12:30:00",
        "raw": "<3 bytes>",
        "flag": True,
        "large": 2**80,
        "huge": "<a number of 16610 bits>",
        "array": [[1, 2]],
        "nested": {"1": [0.5, {"x": None}, ["a", None]]},
        "set": "{1}",
        "half": "\ud800",
    }


def test_lines_can_be_read_while_the_run_goes_on(tmp_path, logger):
    logger.start(info(tmp_path))
    for step in (1, 2):
        logger.log(step, {"train/loss": 1.0})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step


def test_values_json_has_no_word_for_become_null(tmp_path, logger):
    logger.start(info(tmp_path))
    logger.log(1, {"a": float("nan"), "b": np.float32("inf"), "c": np.float32(0.5)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "stage": "train",
        "a": None,
        "b": None,
        "c": 0.5,
    }


def test_samples_keep_their_text_and_become_plain_json(tmp_path, logger):
    logger.start(info(tmp_path))
    rows = [
        {
            "prompt": "1+1=",
            "completion": "zwei ☺\n",
            "reward": np.float32(1),
            "ids": np.arange(2),
            "path": Path("x"),
        },
        {"prompt": [{"role": "user", "content": "hi"}], "reward": float("-inf"), "truncated": np.bool_(True)},
    ]
    logger.log_samples(4, rows)
    text = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert "zwei ☺\\n" in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {
            "step": 4,
            "stage": "train",
            "prompt": "1+1=",
            "completion": "zwei ☺\n",
            "reward": 1.0,
            "ids": [0, 1],
            "path": "x",
        },
        {
            "step": 4,
            "stage": "train",
            "prompt": [{"role": "user", "content": "hi"}],
            "reward": None,
            "truncated": True,
        },
    ]


def test_half_a_character_from_a_tokenizer_does_not_stop_the_logger(tmp_path, logger):
    logger.start(info(tmp_path))
    logger.log_samples(1, [{"completion": "\udc80"}])
    assert json.loads((tmp_path / "samples.jsonl").read_text())["completion"] == "\udc80"


def test_a_resumed_run_appends(tmp_path, logger):
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 2.0})
    logger.close()
    again = JsonlLogger(JsonlConfig(name="jsonl"))
    again.start(info(tmp_path, first_step=2))
    again.log(2, {"train/loss": 1.0})
    again.close()
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_line_that_a_crash_cut_short_does_not_swallow_the_next_one(tmp_path, logger):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "tra')
    logger.start(info(tmp_path))
    logger.log(2, {"train/loss": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"step": 2, "tra']
    assert json.loads(lines[2]) == {"step": 2, "stage": "train", "train/loss": 1.0}


def test_a_second_stage_goes_on_in_the_same_file(tmp_path, logger):
    for stage in ("sft", "grpo"):
        logger.start(info(tmp_path, stage))
        logger.log(1, {"train/loss": 1.0})
    assert [json.loads(x)["stage"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == ["sft", "grpo"]


def test_closing_twice_is_harmless(tmp_path, logger):
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 1.0})
    logger.close()
    logger.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]


def test_rows_that_wait_for_room_are_written_before_a_checkpoint_and_those_that_come_again_only_then(
    tmp_path, logger, monkeypatch
):
    def full(_file, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = tmp_path / "metrics.jsonl"
    logger.start(info(tmp_path, "sft"))
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        for step in (1, 2, 3):
            logger.log(step, {"train/loss": 1.0})
        logger.start(info(tmp_path, "sft", first_step=3))  # a worker died: step 3 is run again
        assert metrics.read_text() == ""
    logger.doing("saving a checkpoint")
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2]
    logger.log(3, {"train/loss": 0.5})
    assert [json.loads(line)["train/loss"] for line in metrics.read_text().splitlines()] == [1.0, 1.0, 0.5]
