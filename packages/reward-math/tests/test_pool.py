"""Worker processes: deadlines, deaths, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rl_core.contracts.reward import Sample
from rl_reward_math.config import MathConfig
from rl_reward_math.reward import Math

ENDLESS, EQUAL, UNEQUAL = r"\boxed{9^{9^{9^9}}}", r"\boxed{5}", r"\boxed{6}"


class Judging(Math):
    """The reward, whose scores are read back as the words for them."""

    def judge(self, completions: list[str]) -> list[str]:
        scores = self.score([Sample(row={"answer": "5"}, prompt="", completion=one) for one in completions])
        return [self.word(score) for score in scores]

    def word(self, score: Any) -> str:
        found = [name for name in ("timeout", "crashed", "unparsed") if score[name]]
        return found[0] if found else "equal" if score["reward"] else "unequal"


@pytest.fixture
def pool() -> Iterator[Callable[..., Judging]]:
    built: list[Judging] = []

    def build(**fields: Any) -> Judging:
        built.append(Judging(MathConfig(name="math", **{"timeout_s": 60.0, "memory_mb": None, **fields})))
        return built[-1]

    yield build
    for one in built:
        one.close()


def kill_when_stuck(started: dict[int, float]) -> None:
    """SIGKILL the worker that calculates for two seconds more than it had when it was ready; easy ones take 0.01 s."""
    while True:
        for pid, seconds in started.items():
            if cpu_seconds(pid) > seconds + 2.0:
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_endless_verdict_times_out_and_the_others_are_unaffected(pool: Callable) -> None:
    verdicts = pool(timeout_s=2.0).judge([EQUAL, ENDLESS, UNEQUAL, EQUAL, ENDLESS, EQUAL, UNEQUAL])
    assert verdicts == ["equal", "timeout", "unequal", "equal", "timeout", "equal", "unequal"]


def test_a_pool_works_again_after_a_timeout_and_after_close(pool: Callable) -> None:
    one = pool(workers=1, timeout_s=2.0)
    assert one.judge([ENDLESS, EQUAL]) == ["timeout", "equal"]
    assert one.judge([EQUAL, UNEQUAL]) == ["equal", "unequal"]
    one.close()
    assert one.pids == []
    assert one.judge([UNEQUAL]) == ["unequal"]


def test_a_worker_killed_in_the_middle_costs_one_verdict(pool: Callable) -> None:
    one = pool(workers=2, timeout_s=600.0)
    one.judge([EQUAL, UNEQUAL])  # what a start takes depends on the machine: two idle workers have it behind them
    assert len(one.pids) == 2
    started = {pid: cpu_seconds(pid) for pid in one.pids}
    killer = threading.Thread(target=kill_when_stuck, args=(started,), daemon=True)
    killer.start()
    verdicts = one.judge([EQUAL, UNEQUAL, ENDLESS, *[EQUAL, UNEQUAL] * 10])
    killer.join()
    assert verdicts == ["equal", "unequal", "crashed", *["equal", "unequal"] * 10]


def test_a_worker_killed_between_calls_costs_nothing(pool: Callable, ends: Callable) -> None:
    one = pool(workers=2)
    one.judge([EQUAL, UNEQUAL])
    os.kill(one.pids[0], signal.SIGKILL)
    assert ends(one.pids[0])
    assert one.judge([EQUAL, UNEQUAL, EQUAL]) == ["equal", "unequal", "equal"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is for Linux")
def test_a_worker_that_runs_out_of_memory_costs_one_verdict(pool: Callable) -> None:
    large = "\\boxed{" + "x" * 120_000_000 + "}"
    assert pool(workers=1, memory_mb=512).judge([EQUAL, large, UNEQUAL]) == ["equal", "crashed", "unequal"]


def test_no_more_workers_start_than_there_are_questions(pool: Callable) -> None:
    one = pool(workers=3)
    assert one.judge([]) == []
    assert one.pids == []
    one.judge([EQUAL])
    assert len(one.pids) == 1


def test_questions_larger_than_a_pipe_arrive(pool: Callable) -> None:
    large = "word " * 100_000 + r"So $5$."
    assert pool().judge([large, EQUAL, large]) == ["equal", "equal", "equal"]


def test_threads_share_a_pool(pool: Callable) -> None:
    one, results = pool(), {}
    questions = [EQUAL, UNEQUAL] * 20

    def run(name: int) -> None:
        results[name] = one.judge(questions)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), ["equal", "unequal"] * 20)


def test_close_ends_the_workers(pool: Callable, ends: Callable) -> None:
    one = pool()
    one.judge([EQUAL, UNEQUAL])
    pids = one.pids
    assert len(pids) == 2
    one.close()
    one.close()
    assert all(ends(pid, within_s=0) for pid in pids)


def test_a_pool_that_is_dropped_ends_its_workers(ends: Callable) -> None:
    one = Judging(MathConfig(name="math", workers=1))
    one.judge([EQUAL])
    (pid,) = one.pids
    del one
    assert ends(pid)


PROGRAM = r"""
import os, signal, sys, threading, time
from rl_core.contracts.reward import Sample
from rl_reward_math.config import MathConfig
from rl_reward_math.reward import Math

pool = Math(MathConfig(name="math", timeout_s=float(sys.argv[2])))
pool.score([Sample({"answer": "5"}, "", r"\boxed{5}")] * 50)
print(*pool.pids, flush=True)
if sys.argv[1] == "raise":
    raise SystemExit(3)
if sys.argv[1] == "stuck":
    stuck = [Sample({"answer": "5"}, "", r"\boxed{9^{9^{9^9}}}")] * 2
    threading.Thread(target=pool.score, args=(stuck,), daemon=True).start()
    time.sleep(0.5)
if sys.argv[1] != "end":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("ending", "timeout_s", "code"),
    [("end", 60.0, 0), ("raise", 60.0, 3), ("killed", 60.0, -9), ("stuck", 2.0, -9)],
)
def test_no_worker_outlives_the_program(ending: str, timeout_s: float, code: int, ends: Callable) -> None:
    # Not a script with a main guard: workers do not import the program that started them.
    command: list[Any] = [sys.executable, "-c", PROGRAM, ending, str(timeout_s)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    assert all(ends(pid) for pid in pids)
