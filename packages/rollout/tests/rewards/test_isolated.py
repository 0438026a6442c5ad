"""A reward in a process of its own: late, crashing, and ended with the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_core.component import Component, ComponentChoice
from rl_core.config.sections import RewardConfig
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError, EnvironmentProblem, RLError
from rl_rollout.rewards.outcomes import Failure
from rl_rollout.rewards.scoring import WeightedRewards, scorer

TIMEOUT_S = 4.0
REWARD = """
import logging, os, pathlib, subprocess, time
from rl_core.errors import DataError

class Moody:
    def __init__(self, config):
        self.config = config

    def score(self, samples):
        return [self.one(s) for s in samples]

    def one(self, sample):
        text = sample.completion
        if text == "log":
            logging.getLogger("mood").warning("a %s mood", "bad")
        if text == "hang":
            child = subprocess.Popen(["sleep", "600"])
            pathlib.Path(sample.row["pids"]).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(600)
        if text == "exit":
            os._exit(3)
        if text == "crash":
            os.abort()
        if text == "raise":
            raise KeyError("gold")
        if text == "escape":
            logging.getLogger("mood").warning("\\x1b[2J a mood")
            raise ValueError("\\x1b]0;owned\\x07 cannot be parsed")
        if text == "data":
            raise DataError("rows.jsonl:1: no answer")
        return {"reward": len(text), "pid": os.getpid()}

    def close(self):
        pathlib.Path(__file__).with_name("closed").write_text("by the process")

class Refuses:
    def __init__(self, config):
        raise ValueError("no key")

class Dies:
    def __init__(self, config):
        os._exit(7)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moody")
    (folder / "moody_reward.py").write_text(REWARD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def choice(factory="Moody", **fields):
    component = Component("reward", "moody", f"moody_reward:{factory}", "rl_core.config.sections:RewardConfig", "")
    config = RewardConfig(name="moody", timeout_s=TIMEOUT_S, **fields)
    return ComponentChoice("reward", "moody", component, "rl-moody", config)


def in_a_process(chosen):
    def build(_choice):
        raise AssertionError("it must not be built in the driver")

    return scorer(chosen, build)


@pytest.fixture(scope="module")
def process(folder):
    process = in_a_process(choice())
    yield process
    process.close()


def sample(completion, **row):
    return Sample(row={"__where__": "rows.jsonl:7", **row}, prompt="1+1=", completion=completion)


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def ends(pid):
    """Whether the process ends within a minute."""
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_samples_are_scored_in_one_process_that_is_not_the_drivers(process):
    first, second = process.attempt([sample("ab"), sample("c")]), process.attempt([sample("")])
    assert [o["reward"] for o in [*first, *second]] == [2.0, 1.0, 0.0]
    assert {o["pid"] for o in [*first, *second]} == {process.pid}
    assert process.pid != os.getpid()


def line_of(code):
    return REWARD.splitlines().index(code) + 1


def test_what_is_late_is_killed_with_all_it_started_and_the_others_are_scored(process, tmp_path, folder, caplog):
    hanging = sample("hang", pids=str(tmp_path / "pids"))
    pipeline = WeightedRewards([(choice(on_error="drop"), process)])
    scores = pipeline.score([sample("ab"), hanging, sample("abc")])
    assert str(scores.rewards.tolist()) == "[2.0, nan, 3.0]"
    assert scores.counts == {"reward_failures": 1.0, "reward_timeouts": 1.0, "reward_dropped": 1.0}
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert process.pid not in pids, "another process scored the last sample"
    assert [ends(pid) for pid in pids] == [True, True]
    line = line_of("            time.sleep(600)")
    assert [r.getMessage() for r in caplog.records] == [
        "reward 'moody' (rl-moody) failed for 1 of 3 samples, which are left out; the first: "
        f"rows.jsonl:7: took longer than timeout_s: 4 ({folder}/moody_reward.py:{line})"
    ]


def test_a_late_reward_stops_the_run_where_nothing_else_is_asked_for(process, tmp_path, folder):
    with pytest.raises(RLError) as raised:
        WeightedRewards([(choice(), process)]).score([sample("hang", pids=str(tmp_path / "pids"))])
    assert str(raised.value) == (
        "rows.jsonl:7: reward 'moody' (rl-moody) took longer than timeout_s: 4 "
        f"({folder}/moody_reward.py:{line_of('            time.sleep(600)')})\n"
        "    the sample: prompt '1+1=', completion 'hang'\n"
        "    raise its timeout_s, or set its on_error: zero (such a sample scores 0) or drop (it is left out of "
        "training); rollout/reward_failures counts them"
    )


def test_what_happens_in_the_process_is_told_as_if_it_had_happened_here(process, folder):
    assert process.attempt([sample("exit")]) == Failure("ended its process (exit code 3)")
    raised = process.attempt([sample("raise")])
    line = line_of('            raise KeyError("gold")')
    assert raised == Failure(f"raised KeyError: 'gold' ({folder}/moody_reward.py:{line})")
    with pytest.raises(DataError, match=r"^rows.jsonl:1: no answer$"):
        process.attempt([sample("data")])
    assert process.attempt([sample("crash")]) == Failure("ended its process (signal SIGABRT)")


def test_what_the_reward_logs_is_logged_by_the_driver(process, caplog):
    assert [o["reward"] for o in process.attempt([sample("log"), sample("a")])] == [3.0, 1.0]
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [("mood", "WARNING", "a bad mood")]


def test_what_it_says_does_not_move_the_cursor_of_a_terminal(process, caplog):
    """A model writes the completion that a reward quotes in its error."""
    failure = process.attempt([sample("escape")])
    assert failure.reason.startswith("raised ValueError: �]0;owned� cannot be parsed")
    assert "�[2J a mood" in caplog.text


def test_samples_that_cannot_be_sent_are_an_error_that_says_so(process):
    with pytest.raises(RLError) as raised:
        process.attempt([sample("ab", column=lambda: 0)])
    assert str(raised.value).startswith(
        "reward 'moody' (rl-moody) runs in a process of its own, and cannot be sent there: "
    )


def test_a_reward_that_cannot_be_built_says_why(folder):
    with pytest.raises(RLError, match=r"^building reward 'moody' \(rl-moody\) failed: ValueError\('no key'\)$"):
        in_a_process(choice("Refuses")).attempt([sample("a")])
    with pytest.raises(EnvironmentProblem) as raised:
        in_a_process(choice("Dies")).attempt([sample("a")])
    assert str(raised.value) == (
        "the process of reward 'moody' (rl-moody) does not start: exit code 7\n"
        "    what it printed is above; with timeout_s: null the reward runs in the driver"
    )


def test_a_closed_process_closes_its_reward_and_one_that_lost_its_driver_ends(folder):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from rl_core.config.sections import RewardConfig\n"
        "from rl_rollout.rewards.isolated import RewardProcess\n"
        "from rl_core.contracts.reward import Sample\n"
        "p = RewardProcess(who='r', reference='moody_reward:Moody', package='m', config=RewardConfig(name='r'))\n"
        "p.attempt([Sample({}, '', '')]); print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    (folder / "closed").unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert ends(int(done.stdout))
    assert (folder / "closed").read_text() == "by the process"
