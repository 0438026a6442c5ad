from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rl_core.contracts.logger import RunInfo
from rl_logger_tensorboard.config import TensorboardConfig
from rl_logger_tensorboard.logger import TensorboardLogger, as_markdown
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator


def info(directory: Path, *, stage="train", stages=("train",), total=10, first=1) -> RunInfo:
    return RunInfo(
        run="demo",
        directory=str(directory),
        stage=stage,
        stages=stages,
        total_steps=total,
        first_step=first,
        config={},
    )


def build(**fields) -> TensorboardLogger:
    return TensorboardLogger(TensorboardConfig(name="tensorboard", **fields))


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: tag → (step, value)."""
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    return {
        tag: [(e.step, pytest.approx(e.tensor_proto.float_val[0])) for e in events.Tensors(tag)]
        for tag in tags
        if not tag.endswith("samples")
    }


def texts(directory: Path, tag: str) -> list[tuple[int, str]]:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]


def test_every_metric_is_a_scalar_under_its_own_name(tmp_path):
    logger = build()
    logger.start(info(tmp_path))
    logger.log(0, {"eval/accuracy": 0.25})
    logger.log(1, {"train/loss": 2.0, "eval/accuracy": 0.5})
    logger.log(2, {"train/loss": 1.0})
    logger.close()
    assert scalars(tmp_path) == {"train/loss": [(1, 2.0), (2, 1.0)], "eval/accuracy": [(0, 0.25), (1, 0.5)]}


def test_stages_are_prefixes_and_steps_count_on(tmp_path):
    logger = build()
    for stage, total in (("sft", 3), ("grpo", 2)):
        logger.start(info(tmp_path, stage=stage, stages=("sft", "grpo"), total=total))
        for step in range(1, total + 1):
            logger.log(step, {"train/loss": float(step)})
    logger.close()
    assert scalars(tmp_path) == {
        "sft/train/loss": [(1, 1.0), (2, 2.0), (3, 3.0)],
        "grpo/train/loss": [(4, 1.0), (5, 2.0)],
    }


def test_a_run_that_starts_its_workers_again_hides_the_steps_that_run_again(tmp_path):
    logger = build()
    logger.start(info(tmp_path))
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 10.0 + step})
    logger.start(info(tmp_path, first=3))
    for step in (3, 4):
        logger.log(step, {"train/loss": 20.0 + step})
    logger.close()
    assert scalars(tmp_path) == {"train/loss": [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)]}


def test_a_resume_continues_and_hides_the_steps_that_run_again(tmp_path):
    first = build()
    first.start(info(tmp_path))
    for step in (1, 2, 3):
        first.log(step, {"train/loss": 10.0 + step})
    first.close()
    second = build()
    second.start(info(tmp_path, first=3))
    for step in (3, 4):
        second.log(step, {"train/loss": 20.0 + step})
    second.close()
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2
    assert scalars(tmp_path) == {"train/loss": [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)]}


def test_a_resume_in_a_later_stage_still_knows_the_earlier_ones(tmp_path):
    stages = ("sft", "grpo")
    first = build()
    first.start(info(tmp_path, stage="sft", stages=stages, total=5))
    first.log(5, {"train/loss": 1.0})
    first.start(info(tmp_path, stage="grpo", stages=stages, total=4))
    first.log(1, {"train/loss": 2.0})
    first.close()
    second = build()
    second.start(info(tmp_path, stage="grpo", stages=stages, total=4, first=2))
    second.log(2, {"train/loss": 3.0})
    second.close()
    assert scalars(tmp_path) == {"sft/train/loss": [(5, 1.0)], "grpo/train/loss": [(6, 2.0), (7, 3.0)]}


def test_samples_are_text(tmp_path):
    logger = build()
    logger.start(info(tmp_path))
    logger.log_samples(2, [{"prompt": "1+1=", "completion": "2", "reward": 1.0}])
    logger.close()
    assert texts(tmp_path, "samples") == [
        (2, "**reward** `1`\n\n**prompt**\n\n    1+1=\n\n**completion**\n\n    2"),
    ]


def test_samples_can_be_switched_off(tmp_path):
    logger = build(samples=False)
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 1.0})
    logger.log_samples(1, [{"prompt": "1+1="}])
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["tensors"] == ["train/loss"]


def test_text_that_looks_like_markdown_is_shown_verbatim():
    text = as_markdown([{"completion": "```\n# no heading", "messages": [{"content": "`x`"}]}, {"completion": ""}])
    assert text == (
        '**messages** `[{"content": "\'x\'"}]`\n\n**completion**\n\n    ```\n    # no heading'
        "\n\n---\n\n"
        "**completion**\n\n     "
    )


def test_values_that_are_not_finite_do_not_stop_it(tmp_path):
    logger = build()
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": float("nan")})
    logger.log(2, {"train/loss": 1.0})
    logger.close()
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2]


def test_values_reach_the_disk_while_the_run_goes_on(tmp_path):
    import time

    logger = build(flush_s=0.1)
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 1.0})
    deadline = time.monotonic() + 20
    while not scalars(tmp_path):
        assert time.monotonic() < deadline, "nothing was flushed"
        time.sleep(0.1)
    logger.close()


def test_closing_twice_is_harmless(tmp_path):
    logger = build()
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 0.5})
    logger.close()
    written = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert written
    logger.close()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == written


def test_it_needs_neither_torch_nor_tensorflow():
    code = (
        "import sys, rl_logger_tensorboard.plugin, rl_logger_tensorboard.config\n"
        "print('tensorboard' in sys.modules)\n"
        "import rl_logger_tensorboard.logger\n"
        "print({'torch', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nset()\n"
