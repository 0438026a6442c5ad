"""Machines come and go under a run; see ``nodes.py`` for what happens there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the script saw."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("nodes.py"), tmp_path_factory.mktemp("logs")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray may say more


def test_generators_follow_the_machines_and_every_request_is_answered_once(seen):
    assert seen["grown"] == 3
    assert (seen["after_stop"], seen["replicas_after_stop"]) == (True, 2)
    assert (seen["after_removal"], seen["replicas_after_removal"]) == (True, 1)


def test_a_worker_stopped_on_another_machine_is_examined_there(seen):
    (hung,) = [m for m in seen["messages"] if "hung" in m and m.startswith("generator generate-")]
    assert re.search(r"no heartbeat for 8 s; the process is stopped \(by SIGSTOP", hung)


def test_without_resources_the_run_waits_says_what_it_needs_and_gives_up_in_time(seen):
    assert seen["no_room"] == (
        "no room for the workers after 7 s: they need {'CPU': 2.0}, the cluster has {'CPU': 1.0}\n"
        "    lower backend.parallel or generator.replicas, or add machines (run.wait_for_resources waits longer)"
    )
    waited = [m for m in seen["messages"] if m.startswith("waiting up to ")]
    assert re.fullmatch(
        r"waiting up to \d s for room: the workers need \{'CPU': 2.0\}, the cluster has \{'CPU': 1.0\}; "
        r"add machines, or free some",
        waited[0],
    )
    assert seen["came"] == 2
    assert "there is room now: the cluster has {'CPU': 2.0}" in seen["messages"]


def test_a_rank_whose_machine_leaves_is_named_and_all_start_again_on_the_next_machine(seen):
    assert re.match(r"training worker train-[01] \(pid \d+ on \S+\) ended during (?:wait|policy train): ", seen["lost"])
    assert seen["again"] == 2
