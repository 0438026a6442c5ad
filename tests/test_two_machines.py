"""Workers on two machines that share one of their networks: namespaces joined by a pair of virtual cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker_on_a_machine.py")
PATIENCE_S = 200.0
CARDS = (("fast0", "10.77.0.1"), ("rdma1", "10.77.0.2"))
"""Machines of one cluster may name their cards differently."""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=True)


@pytest.fixture
def machines():
    """Process ids in two network namespaces, each with loopback, a card to the other, and one that leads nowhere."""
    with ExitStack() as stack:
        inside = []
        for _ in CARDS:
            # It says when it is in its namespace; its end is that of the namespace and of its cards.
            command = ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            if process.stdout.readline() != "ready\n":
                pytest.skip("this user may not make network namespaces")
            inside.append(str(process.pid))
        pair = [part for (card, _), pid in zip(CARDS, inside, strict=True) for part in (card, pid)]
        try:
            ip("link", "add", pair[0], "netns", pair[1], "type", "veth", "peer", "name", pair[2], "netns", pair[3])
            for (card, address), pid in zip(CARDS, inside, strict=True):
                there = ["nsenter", "--net", "--target", pid, "ip"]
                for command in (
                    ["link", "set", "lo", "up"],
                    ["link", "add", "office0", "type", "veth", "peer", "name", "office1"],
                    ["addr", "add", "192.168.7.1/24", "dev", "office0"],
                    ["addr", "add", f"{address}/24", "dev", card],
                    ["link", "set", "office0", "up"],
                    ["link", "set", "office1", "up"],
                    ["link", "set", card, "up"],
                ):
                    subprocess.run([*there, *command], capture_output=True, timeout=30, check=True)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"no virtual network cards here: {getattr(error, 'stderr', error)!r}")
        yield inside


def start(pid, rank, interface):
    command = ["nsenter", "--net", "--target", pid, sys.executable, str(WORKER), str(rank), interface]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def test_workers_on_two_machines_rendezvous_and_listen_on_the_cluster_network_only(machines):
    workers = [start(pid, rank, CARDS[rank][0]) for rank, pid in enumerate(machines)]
    deadline = threading.Timer(PATIENCE_S, lambda: [worker.kill() for worker in workers])
    deadline.start()
    try:
        places = json.loads(workers[0].stdout.readline())
        assert [(place["address"], place["folder"]) for place in places] == [("10.77.0.1", "")] * 2
        workers[1].stdin.write(json.dumps(places) + "\n")
        workers[1].stdin.flush()
        found = [json.loads(worker.stdout.readline()) for worker in workers]
        for worker in workers:
            worker.stdin.close()
        assert [worker.wait(60) for worker in workers] == [0, 0]
    finally:
        deadline.cancel()
        for worker in workers:
            worker.kill()
            worker.wait(30)
            worker.stdout.close()
    assert [rank["sum"] for rank in found] == [2, 2]
    assert [rank["received"] for rank in found] == [[7] * 4] * 2
    for rank, (_, own) in zip(found, CARDS, strict=True):
        assert {address for address, _ in rank["opened"]} == {own}
    assert {place["port"] for place in places} <= {port for _, port in found[0]["opened"]}


def test_a_worker_on_a_machine_without_the_interface_says_which_there_are(machines):
    worker = subprocess.run(
        ["nsenter", "--net", "--target", machines[0], sys.executable, str(WORKER), "0", "fast9"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert worker.returncode == 1
    assert "has no network interface 'fast9' (run.network_interface)" in worker.stderr
    assert "it has: fast0 (10.77.0.1), lo (127.0.0.1), office0 (192.168.7.1)" in worker.stderr
