"""Threads that hang: who takes their place, and what they cannot hold up; coroutines that are left at the end."""

import asyncio
import subprocess
import sys
import threading

import pytest
from rl_core.contracts.environment import CallFailed
from rl_rollout.environment_calls import EnvironmentCalls, EnvironmentFailure


class Sleeps:
    """Its conversation number 0 hangs until it is released."""

    def __init__(self):
        self.released = threading.Event()
        self.threads = set()

    def start(self, row, seed):
        self.threads.add(threading.current_thread())
        if row["number"] == 0:
            self.released.wait(120)
        return row["number"]


def started(environment, count, *, timeout_s, concurrency):
    calls = EnvironmentCalls(environment, name="environment 'sleeps'", timeout_s=timeout_s, concurrency=concurrency)
    states = [calls.start({"number": n}, 0, place=f"row {n}") for n in range(count)]
    calls.wait(states, at_most_s=None, all_of_them=True)
    environment.released.set()
    calls.close()
    return states


def test_a_hanging_thread_is_replaced_and_its_call_alone_fails():
    states = started(Sleeps(), 4, timeout_s=1.0, concurrency=1)
    with pytest.raises(EnvironmentFailure) as caught:
        states[0].result()
    assert str(caught.value) == (
        "environment 'sleeps' took longer than 1 s in start, for row 0\n"
        "    raise environment.step_timeout_s, or set environment.on_error: end, which ends such conversations and "
        "counts them"
    )
    assert [state.result() for state in states[1:]] == [1, 2, 3]


def test_calls_share_the_threads_there_may_be():
    class Quick(Sleeps):
        def start(self, row, seed):
            self.threads.add(threading.current_thread())
            return row["number"]

    environment = Quick()
    states = started(environment, 200, timeout_s=60, concurrency=3)
    assert [state.result() for state in states] == list(range(200))
    assert 1 <= len(environment.threads) <= 3


PROGRAM = """
import time
from rl_rollout.environment_calls import EnvironmentCalls

class Hangs:
    def start(self, row, seed):
        time.sleep(600)

calls = EnvironmentCalls(Hangs(), name="environment 'hangs'", timeout_s=0.1, concurrency=2)
state = calls.start({}, 0, place="a row")
calls.wait([state], at_most_s=None, all_of_them=True)
print(type(state.exception()).__name__)
"""


def test_a_hanging_thread_does_not_keep_the_process_from_ending():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "EnvironmentFailure"


def test_an_environment_that_runs_code_elsewhere_says_what_that_did():
    class Elsewhere:
        async def start(self, row, seed):
            raise CallFailed("ended its process (exit code 3)", ": out of memory")

    calls = EnvironmentCalls(Elsewhere(), name="environment 'elsewhere'", timeout_s=60, concurrency=1)
    state = calls.start({}, 0, place="row 1")
    calls.wait([state], at_most_s=60, all_of_them=True)
    calls.close()
    assert isinstance(state.exception(), EnvironmentFailure)
    assert str(state.exception()) == (
        "environment 'elsewhere' ended its process (exit code 3) in start, for row 1: out of memory\n"
        "    fix it, or set environment.on_error: end, which ends such conversations and counts them"
    )


def test_coroutines_under_way_are_cancelled_at_the_end_and_their_loop_closed():
    class Waits:
        waiting, cancelled = threading.Event(), threading.Event()

        async def start(self, row, seed):
            self.loop = asyncio.get_running_loop()
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

    environment = Waits()
    calls = EnvironmentCalls(environment, name="environment 'waits'", timeout_s=600, concurrency=1)
    calls.start({}, 0, place="row 1")
    assert environment.waiting.wait(60)
    calls.close()
    assert environment.cancelled.wait(60)
    for thread in threading.enumerate():
        if thread.name == "environment":
            thread.join(60)
    assert environment.loop.is_closed()
