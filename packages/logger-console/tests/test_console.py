from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rl_core.contracts.logger import RunInfo
from rl_logger_console.config import ConsoleConfig
from rl_logger_console.console import ConsoleLogger
from rl_logger_console.stage import duration


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def info(*, stage: str = "sft", stages: tuple[str, ...] = ("sft",), total: int = 200, first: int = 1) -> RunInfo:
    return RunInfo(
        run="demo", directory=".", stage=stage, stages=stages, total_steps=total, first_step=first, config={}
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run_plain(clock: Clock, *, steps: int, seconds: float, evaluate_at: tuple[int, ...] = (), first: int = 1, **fields):
    """Log ``steps`` steps of ``seconds`` each; returns the lines of a redirected output."""
    out = io.StringIO()
    logger = ConsoleLogger(
        ConsoleConfig(name="console", **fields), console=Console(file=out, force_terminal=False), clock=clock
    )
    logger.start(info(total=steps, first=first))
    if 0 in evaluate_at:
        logger.log(0, {"eval/accuracy": 0.0})
    for step in range(first, steps + 1):
        clock.now += seconds
        metrics = {"train/loss": 2.0 / step, "train/grad_norm": 0.5, "time/step_s": seconds}
        if step in evaluate_at:
            metrics["eval/accuracy"] = 0.5
        logger.log(step, metrics)
    logger.close()
    return out.getvalue().splitlines()


def printed_steps(lines: list[str]) -> list[int]:
    return [int(re.search(r"step +(\d+)/", line).group(1)) for line in lines]


def test_a_redirected_line_reads_like_this(clock):
    out = io.StringIO()
    logger = ConsoleLogger(ConsoleConfig(name="console"), console=Console(file=out, force_terminal=False), clock=clock)
    logger.start(info())
    clock.now += 0.5
    logger.log(
        1,
        {
            "train/loss": 1.23456,
            "rollout/reward_mean": 0.5,
            "eval/accuracy": 0.582,
            "train/grad_norm": 0.75,
            "train/tokens_per_second": 12345.0,
            "time/step_s": 0.5,
        },
    )
    assert out.getvalue() == (
        "sft  step   1/200  loss  1.2346  reward  0.5000  accuracy  58.2 %  grad norm  0.7500  "
        "tokens/s   12.3k  time  0.50 s  1:40 min left\n"
    )


def test_short_steps_print_the_first_the_last_and_every_tenth_part(clock):
    lines = run_plain(clock, steps=100, seconds=1.0)
    assert printed_steps(lines) == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]


def test_very_short_steps_print_at_most_every_five_seconds(clock):
    assert printed_steps(run_plain(clock, steps=100, seconds=0.2)) == [1, 26, 51, 76, 100]


def test_every_s_is_the_least_time_between_two_lines(clock):
    assert printed_steps(run_plain(clock, steps=100, seconds=1.0, every_s=40)) == [1, 41, 81, 100]


def test_a_long_stage_is_never_silent_for_much_more_than_a_minute(clock):
    assert printed_steps(run_plain(clock, steps=1000, seconds=20.0))[:5] == [1, 4, 7, 10, 13]


def test_every_evaluation_is_printed(clock):
    assert printed_steps(run_plain(clock, steps=20, seconds=0.01, evaluate_at=(0, 7, 20))) == [0, 1, 7, 20]


def test_columns_stay_aligned_when_a_metric_comes_only_sometimes(clock):
    lines = run_plain(clock, steps=20, seconds=0.01, evaluate_at=(0, 7, 20))
    assert lines[1:] == [
        "sft  step  1/20  loss  2.0000                    grad norm  0.5000  time  0.01 s  0 s left",
        "sft  step  7/20  loss  0.2857  accuracy  50.0 %  grad norm  0.5000  time  0.01 s  0 s left",
        "sft  step 20/20  loss  0.1000  accuracy  50.0 %  grad norm  0.5000  time  0.01 s",
    ]


def test_the_time_left_after_a_resume_counts_only_steps_done_here(clock):
    lines = run_plain(clock, steps=100, seconds=2.0, first=91)
    assert lines[0].endswith("18 s left")


def test_a_terminal_shows_a_table_that_stays(clock):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    logger = ConsoleLogger(ConsoleConfig(name="console"), console=console, clock=clock)
    logger.start(info(stage="grpo", stages=("sft", "grpo"), total=50))
    logger.log(0, {"eval/accuracy": 0.582})
    for step in range(1, 51):
        clock.now += 2
        logger.log(step, {"train/loss": 0.01, "rollout/reward_mean": step / 50, "time/step_s": 2.0})
    logger.close()
    last_frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue().split("grpo (2 of 2)")[-1])
    assert "step 50/50 1:40 min" in last_frame
    lines = [line.split() for line in last_frame.splitlines()[1:] if line.strip()]
    assert lines[0] == ["step", "loss", "reward", "accuracy", "time"]
    assert lines[1] == ["0", "58.2", "%"]  # the latest evaluation stays in sight
    assert [line[0] for line in lines[2:]] == ["45", "46", "47", "48", "49", "50"]
    assert lines[-1] == ["50", "0.0100", "1.0000", "2.00", "s"]


def test_each_stage_leaves_its_own_table(clock):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    logger = ConsoleLogger(ConsoleConfig(name="console"), console=console, clock=clock)
    for stage in ("sft", "grpo"):
        logger.start(info(stage=stage, stages=("sft", "grpo"), total=1))
        logger.log(1, {"train/loss": 1.0})
    logger.close()
    logger.close()
    assert "sft (1 of 2)" in out.getvalue()
    assert "grpo (2 of 2)" in out.getvalue()


def test_durations_are_readable():
    assert [duration(s) for s in (0.4, 59, 60, 187, 8100)] == ["0 s", "59 s", "1:00 min", "3:07 min", "2:15 h"]


def test_the_config_is_light():
    code = "import sys, rl_core.loggers.config\nprint({'rich', 'torch', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_redirected_output_says_how_long_an_evaluation_took(clock):
    out = io.StringIO()
    logger = ConsoleLogger(ConsoleConfig(name="console"), console=Console(file=out, force_terminal=False), clock=clock)
    logger.start(info())
    for what, seconds in (("sampling", 5.0), ("evaluating", 0.5), ("evaluating", 3.0), ("saving a checkpoint", 90.0)):
        logger.doing(what)
        clock.now += seconds
        logger.doing(None)
    assert out.getvalue().splitlines() == ["sft  evaluating took 3 s", "sft  saving a checkpoint took 1:30 min"]


def test_a_terminal_names_what_takes_longer_than_a_second(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    logger = ConsoleLogger(ConsoleConfig(name="console"), console=console, clock=clock)
    logger.start(info())
    try:
        logger.doing("evaluating")
        clock.now += 0.5
        assert "evaluating" not in rendered(logger)
        clock.now += 11.5
        assert "evaluating 12 s" in rendered(logger)
        logger.doing(None)
        assert "evaluating" not in rendered(logger)
    finally:
        logger.close()


def rendered(logger):
    console = Console(file=io.StringIO(), width=120)
    console.print(logger._view.render())
    return console.file.getvalue()
