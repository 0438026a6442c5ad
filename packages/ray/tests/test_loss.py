"""Ray that is gone: whoever waits for it is told, and nobody waits for what cannot answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psutil
import pytest
from rl_ray import loss as module
from rl_ray.loss import NodeWatch, ProcessWatch, RayLoss

CHILDREN = "import subprocess, sys, time; [subprocess.Popen(['sleep', '60']) for _ in range(2)]; time.sleep(60)"


class Lost(Exception):
    """For whoever waits."""


@pytest.fixture
def lost():
    return RayLoss(Lost)


def test_a_call_of_ray_s_control_process_ends_when_it_is_gone(lost):
    never = threading.Event()
    threading.Timer(0.3, lost.declare, ["gcs_server has ended"]).start()
    with pytest.raises(Lost, match=r"^gcs_server has ended$"):
        lost.guard(never.wait)
    with pytest.raises(Lost):
        lost.guard(lambda: pytest.fail("it is not asked at all"))
    lost.clear()
    assert lost.guard(lambda: 7) == 7


def test_what_a_guarded_call_raises_is_passed_on(lost):
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        lost.guard(fails)


def test_the_first_reason_counts(lost):
    lost.declare("first")
    lost.declare("second")
    assert lost.reason == "first"


@pytest.fixture
def started():
    with subprocess.Popen([sys.executable, "-c", CHILDREN]) as process:
        own = psutil.Process(process.pid)
        while [child.name() for child in own.children()] != ["sleep", "sleep"]:  # a fork has its parent's name at first
            time.sleep(0.01)
        children = own.children()
        yield process, children
        for one in (*children, process):
            one.kill()


def test_a_process_that_stays_stopped_is_noticed_and_one_that_goes_on_is_not(started, lost):
    process, (first, second) = started
    ProcessWatch(lost, process.pid, stopped_s=2.0)
    first.suspend()
    time.sleep(4 * module.LOOK_EVERY_S)
    first.resume()
    assert not lost.wait(3.0)
    second.suspend()
    assert lost.wait(20)
    assert lost.reason == f"the Ray of this run is lost: sleep (pid {second.pid}) has been stopped for 2 s"


@pytest.mark.parametrize("which", ["child", "starter"])
def test_a_process_that_ends_is_noticed_and_named(which, started, lost):
    process, children = started
    watch = ProcessWatch(lost, process.pid)
    assert not lost.wait(3 * module.LOOK_EVERY_S)
    victim, name = (children[1], "sleep") if which == "child" else (process, "ray start")
    victim.kill()
    assert lost.wait(10)
    assert lost.reason == f"the Ray of this run is lost: {name} (pid {victim.pid}) has ended"
    watch.close()


def test_one_that_has_ended_before_is_noticed_at_once(lost):
    process = subprocess.Popen(["true"])
    process.wait()
    ProcessWatch(lost, process.pid)
    assert lost.reason == "the Ray of this run is lost: it has ended at once"


@pytest.fixture
def asked_often(monkeypatch):
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.05)
    monkeypatch.setattr(module, "SILENT_S", 1.0)
    monkeypatch.setattr(module, "_TOLD_S", 0.5)


def test_a_node_that_has_left_its_cluster_is_noticed(asked_often, lost, monkeypatch):
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": True}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    told = []
    watch = NodeWatch(lost, node_id="b", on_loss=told.append)
    assert not lost.wait(0.5)
    nodes[1] = {"NodeID": "b", "Alive": False}
    assert lost.wait(10)
    assert told == [lost.reason] == ["Ray on this machine has ended, or has left its cluster"]
    watch.close()


def test_a_cluster_that_does_not_answer_is_told_and_then_lost(asked_often, lost, monkeypatch, caplog):
    never = threading.Event()
    monkeypatch.setattr("ray.nodes", never.wait)
    watch = NodeWatch(lost, node_id="a")
    assert lost.wait(10)
    never.set()
    assert caplog.messages == [
        "the Ray cluster does not answer; it is waited for up to 1 s",
        "the Ray cluster has not answered for 1 s: its head is gone",
    ]
    watch.close()


def test_a_cluster_that_answers_again_in_time_is_not_lost(asked_often, lost, monkeypatch, caplog):
    away = threading.Event()

    def nodes():
        if not away.is_set():
            away.wait(0.8)
            away.set()
        return [{"NodeID": "a", "Alive": True}]

    monkeypatch.setattr("ray.nodes", nodes)
    watch = NodeWatch(lost, node_id="a")
    assert not lost.wait(2.5)
    watch.close()
