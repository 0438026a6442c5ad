"""Real worker processes that end, hang and are told apart from busy ones."""

import os
import re
import signal
import stat
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
from frail_workers import Options
from rl_core.cluster.calls import actor_of
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.discovery.registry import load_registry
from rl_core.errors import EnvironmentProblem, RLError, WorkerDied

pytestmark = pytest.mark.slow

HEARTBEAT_S = 6.0

RANK = SimpleNamespace(component=SimpleNamespace(factory="frail_workers:Rank"), config=Options())


@pytest.fixture
def start(cluster, tmp_path):
    """Start a group of ranks; returns its pool."""
    pools = []

    def call(ranks, *, manifest=None, **deadlines):
        pool = WorkerPool(
            manifest=load_registry().manifest() if manifest is None else manifest,
            logs=tmp_path,
            deadlines=Deadlines(**({"start_s": 100, "call_s": 60, "heartbeat_s": HEARTBEAT_S} | deadlines)),
        )
        pools.append(pool)
        pool.prepare(Resources(ranks=ranks, replicas=0, gpus=0, nodes=1, threads=1, generator_threads=1))
        pool.build(pool.trainers, RANK, kind="train", context=WorkerContext(0, 1, "", 0))
        return pool

    yield call
    for pool in pools:
        pool.close()


def pid_of(pool, rank):
    return pool.get([pool.trainers[rank].pid.remote()])[0]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(pool, method, *arguments):
    return [worker.call.remote(method, *arguments) for worker in pool.trainers]


def test_when_a_rank_dies_nobody_waits_for_the_others_and_all_of_them_end(start):
    pool = start(2)
    pids = [pid_of(pool, rank) for rank in range(2)]
    with pytest.raises(WorkerDied) as caught:
        pool.get(ask(pool, "end_or_wait", 1, 600), what="policy train")
    assert (caught.value.worker, caught.value.role) == ("train-1", "train")
    assert str(caught.value).startswith(f"training worker train-1 (pid {pids[1]} on ")
    assert " ended during policy train: " in str(caught.value)
    pool.close()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_the_error_that_a_death_causes_in_a_peer_is_not_taken_for_the_cause(start):
    pool = start(2)
    with pytest.raises(WorkerDied) as caught:
        pool.get(ask(pool, "echo_or_end", 1), what="policy train")
    assert caught.value.worker == "train-1"
    assert "Connection closed by peer" not in str(caught.value)


def test_a_training_worker_that_dies_while_generators_work_is_noticed(start):
    pool = start(2)
    waiting = pool.trainers[0].call.remote("wait", 600)
    os.kill(pid_of(pool, 1), signal.SIGKILL)
    with pytest.raises(WorkerDied) as caught:
        pool.get([waiting], what="generate")
    assert caught.value.worker == "train-1"


def test_a_stopped_worker_is_examined_ended_and_named_and_a_busy_one_is_left_alone(start, caplog):
    pool = start(2)
    pid = pid_of(pool, 1)
    busy = pool.trainers[0].call.remote("wait", 2 * HEARTBEAT_S)
    stuck = pool.trainers[1].call.remote("wait", 600)
    wait_until(lambda: pool.info(actor_of(stuck)).heartbeat.doing == "wait")
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(WorkerDied) as caught:
        pool.get([stuck], what="policy train")
    assert caught.value.cause == "hung"
    lines = str(caught.value).splitlines()
    assert re.fullmatch(
        rf"training worker train-1 \(pid {pid} on \S+\) hung during wait, and was ended: no heartbeat for 6 s; "
        r"the process is stopped \(by SIGSTOP, a terminal or a debugger\)",
        lines[0],
    )
    assert lines[1] == "    its stack:"
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    import ray

    assert ray.get(busy, timeout=240) == "done"
    assert [m for m in caplog.messages if "train-0" in m] == []


def test_a_worker_stuck_in_c_leaves_its_stack(start):
    pool = start(1)
    with pytest.raises(WorkerDied) as caught:
        pool.get(ask(pool, "deadlock"), what="policy train")
    assert "hung during deadlock, and was ended: no heartbeat for 6 s; the process sleeps" in str(caught.value)
    assert re.search(r'File ".*frail_workers.py", line \d+ in deadlock', str(caught.value))
    assert "in deadlock" in (pool._logs / "train-0.log").read_text()


def test_a_call_past_its_deadline_ends_the_worker_although_its_heart_beats(start):
    pool = start(1, call_s=2.0)
    with pytest.raises(WorkerDied) as caught:
        pool.get(ask(pool, "wait", 600), what="policy train")
    assert "and was ended: no answer within 2 s (run.worker_timeout_s, run.start_timeout_s); " in str(caught.value)
    assert "in wait" in str(caught.value)


class NeverRead(dict):
    """A manifest that a worker waits for, as for a plugin whose import hangs."""

    def __reduce__(self):
        return time.sleep, (600,)


def test_a_worker_that_hangs_before_its_first_heartbeat_is_ended_and_named(start):
    with pytest.raises(WorkerDied) as caught:
        start(1, manifest=NeverRead(), start_s=8.0)
    assert (caught.value.worker, caught.value.cause) == ("train-0", "hung")
    assert str(caught.value).startswith(
        "training worker train-0 hung, and was ended: no answer within 8 s (run.worker_timeout_s, "
        "run.start_timeout_s); it has not answered since it was started: "
    )


def test_a_crash_leaves_its_last_words_and_exceptions_their_tracebacks(start):
    pool = start(1)
    with pytest.raises(RLError) as caught:
        pool.get(ask(pool, "break_down"), what="policy train")
    assert type(caught.value) is RLError  # it would happen again: not a reason to start again
    assert re.match(r"training worker train-0 \(pid \d+ on \S+\) failed in policy train:\n", str(caught.value))
    assert "KeyError: 'missing'" in str(caught.value)
    with pytest.raises(WorkerDied) as caught:
        pool.get(ask(pool, "fill"), what="policy train")
    assert (caught.value.worker, caught.value.role, caught.value.cause) == ("train-0", "train", "device_memory")
    assert "in fill" in str(caught.value)
    with pytest.raises(WorkerDied) as caught:
        pool.get(ask(pool, "crash"), what="policy train")
    assert "    Fatal Python error: Segmentation fault" in str(caught.value)
    assert "in crash" in str(caught.value)


def test_the_folder_of_a_group_is_private_and_goes_with_its_workers_even_if_they_were_killed(start):
    pool = start(2)
    places = [pool.rendezvous_point(pool.trainers, purpose=purpose) for purpose in ("one", "two")]
    assert len({place.folder for place in places}) == 2
    assert all(stat.S_IMODE(os.stat(place.folder).st_mode) == 0o700 for place in places)
    for rank in (0, 1):
        os.kill(pid_of(pool, rank), signal.SIGKILL)
    pool.close()
    assert not any(os.path.exists(place.folder) for place in places)


def test_a_worker_that_starts_may_be_silent_for_longer(start):
    pool = start(1)
    silent = pool.trainers[0].call.remote("hold_the_lock", HEARTBEAT_S + 3)
    assert pool.get([silent], starting=True) == ["done"]
    with pytest.raises(WorkerDied, match=r" hung during hold_the_lock, and was ended: no heartbeat for 6 s; "):
        pool.get([pool.trainers[0].call.remote("hold_the_lock", 600)])


def test_a_worker_with_other_plugins_says_what_to_install(start):
    manifest = load_registry().manifest()
    with pytest.raises(EnvironmentProblem) as caught:
        start(1, manifest=manifest | {"rl-core": "9.9"})
    assert str(caught.value) == (
        "the plugins on this machine differ from those of the driver:\n"
        f"    rl-core: 9.9 in the driver, {manifest['rl-core']} here\n    pip install rl-core==9.9"
    )
