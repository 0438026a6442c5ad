"""One process with the user's code: deadlines, ends, limits, and what it prints."""

import os
import signal
import subprocess
import sys
import time

import pytest
from rl_core.errors import EnvironmentProblem, RLError
from rl_isolation.outcome import ProcessEnded, Raised, Returned, TimedOut
from rl_isolation.worker import Limits, Service, Worker


@pytest.fixture
def worker(service):
    built = []

    def build(**limits):
        built.append(Worker(service(**limits)))
        return built[-1]

    yield build
    for one in built:
        one.close()


def do(worker, *task, timeout_s=60.0):
    return worker.call(task, timeout_s=timeout_s)


def test_tasks_of_any_size_are_answered_by_one_process(worker):
    one = worker()
    assert do(one, "echo", "a") == Returned("a")
    assert do(one, "echo", "long " * 500_000) == Returned("long " * 500_000)
    assert do(one, "echo", ["short", 1, None]) == Returned(["short", 1, None])
    assert do(one, "pid") == Returned(one.pid)


@pytest.mark.parametrize("task", [("sleep", 600), ("spin",)])
def test_a_late_task_is_killed_and_says_where_it_was(worker, task):
    one = worker()
    do(one, "echo", 1)
    began = time.monotonic()
    late = do(one, *task, timeout_s=0.5)
    assert isinstance(late, TimedOut)
    assert "isolated_code.py:" in late.place
    assert f"in {task[0]}" in late.stacks
    assert time.monotonic() - began < 10
    assert do(one, "echo", 2) == Returned(2)


def test_how_it_ended_is_told_and_the_next_task_is_answered(worker):
    one = worker()
    assert do(one, "leave", 3) == ProcessEnded("exit code 3")
    assert do(one, "echo", 1) == Returned(1)
    os.kill(one.pid, signal.SIGSEGV)
    time.sleep(0.5)
    assert do(one, "echo", 2) == Returned(2), "nothing was lost with a process that died between tasks"


def test_what_is_raised_is_told_with_its_place(worker):
    raised = do(worker(), "fail")
    assert isinstance(raised, Raised)
    assert raised.reason.startswith("raised KeyError: 'gold' (")
    assert "isolated_code.py:" in raised.place


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("no_json", "returned what has no JSON (TypeError('Object of type set is not JSON serializable'))"),
        ("long", "returned 9,437,197 bytes as JSON; at most 8,388,608 are read"),
        ("nan", "returned what has no JSON (ValueError('Out of range float values are not JSON compliant'))"),
    ],
)
def test_what_cannot_be_sent_is_named(worker, task, reason):
    told = do(worker(), task)
    assert told.reason.replace(": nan", "") == reason


def test_exceptions_that_lie_or_never_end_are_cut(worker):
    one = worker()
    assert do(one, "lies").message == "(its message cannot be read: __str__ raises ValueError)"
    assert len(do(one, "much_text").message) == 2001


def test_prints_and_logs_are_logged_here_and_do_not_disturb_the_answer(worker, caplog):
    one = worker()
    for task in (("write", "hello\nwor"), ("program",), ("log",), ("write", "\x1b[2Jred")):
        assert do(one, *task) == Returned(None)
    said = [(r.name, r.getMessage()) for r in caplog.records]
    printed = "".join(text.removeprefix("the code printed: ") + "\n" for name, text in said if name != "mood")
    assert printed == "hello\nworto stderr\nby a program\n�[2Jredto stderr\n"
    assert ("mood", "a bad mood") in said


def test_what_is_printed_without_end_is_cut(worker, caplog):
    one = worker(output_bytes=1000)
    assert do(one, "write", "x" * 100_000) == Returned(None)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert text.count("x") <= 1000
    assert "(99,010 more bytes are not shown)" in text


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is for Linux")
def test_memory_is_limited(worker):
    told = do(worker(memory_bytes=1 << 30), "eat")
    assert isinstance(told, Raised)
    assert told.type == "MemoryError"


def test_a_task_that_forks_and_returns_twice_answers_once(worker):
    one = worker()
    assert do(one, "forks") == Returned("once")
    assert do(one, "echo", 1) == Returned(1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper")
@pytest.mark.parametrize("how", ["late", "leave", "cancel", "close"])
def test_daemons_and_programs_end_with_the_process(worker, ends, how):
    one = worker()
    pids = do(one, "hides").value
    if how == "late":
        do(one, "sleep", 600, timeout_s=0.2)
    elif how == "leave":
        do(one, "leave", 0)
    else:
        getattr(one, how)()
    assert [ends(pid) for pid in pids] == [True, True]


def test_a_closed_process_closes_what_it_holds(worker, tmp_path):
    one = worker()
    do(one, "echo", 1)
    one.close()
    assert (tmp_path / "closed").read_text() == "by the process"
    assert do(one, "echo", 2) == Returned(2)


PROGRAM = """
import os, sys
from rl_isolation.worker import Service, Worker
worker = Worker(Service("isolated_code:Obeys", (sys.argv[1],), "the code"))
print(*worker.call(("hides",), timeout_s=60).value, worker.pid, flush=True)
if sys.argv[2] == "busy":
    import threading, time
    threading.Thread(target=worker.call, args=(("spin",),), kwargs={"timeout_s": 600}, daemon=True).start()
    time.sleep(0.3)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_nothing_outlives_a_driver_that_is_killed(module, tmp_path, ends, state):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), state]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    assert [ends(pid) for pid in pids] == [True] * 3


def test_a_process_that_does_not_start_says_why(module):
    broken = Worker(Service("no_such_module:f", (), "the code"))
    with pytest.raises(EnvironmentProblem, match="no_such_module"):
        broken.call(1, timeout_s=5)
    wrong = Worker(Service("isolated_code:Obeys", (1, 2), "the code"))
    with pytest.raises(RLError, match=r"^building the code failed: TypeError"):
        wrong.call(1, timeout_s=5)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is for Linux")
def test_a_process_without_memory_to_start_says_so(module):
    tiny = Worker(Service("isolated_code:Obeys", (), "the code", limits=Limits(memory_bytes=1 << 20)))
    with pytest.raises(RLError, match="the code"):
        tiny.call(1, timeout_s=5)


def test_what_cannot_be_pickled_is_an_error_before_anything_is_sent(worker):
    one = worker()
    with pytest.raises(RLError, match="the code runs in a process of its own, and cannot be sent there"):
        do(one, "echo", lambda: 0)
    assert do(one, "echo", 1) == Returned(1)
