"""What a worker keeps for a group: nobody else gets the port, enters the folder, or has to clean up."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from rl_core.cluster import group_rendezvous
from rl_core.cluster.group_rendezvous import RendezvousPoints, remove_folder
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.errors import EnvironmentProblem

NOBODY = "65534"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The temporary folder of this machine, which everybody may use."""
    folder = Path(tempfile.mkdtemp(prefix="rl-test-", dir="/tmp"))  # one that another user can reach
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def places():
    opened = RendezvousPoints()
    yield opened
    opened.close()


def test_members_on_one_machine_meet_in_a_folder_of_their_own_that_goes_with_the_group(places, root):
    first = places.open("train", address="127.0.0.1", one_machine=True)
    assert Path(first.folder).parent == root
    assert stat.S_IMODE(os.stat(first.folder).st_mode) == 0o700
    assert os.listdir(first.folder) == []
    second = places.open("train", address="127.0.0.1", one_machine=True)
    weights = places.open("weights", address="127.0.0.1", one_machine=True)
    assert len({first.folder, second.folder, weights.folder}) == 3
    Path(first.folder, "store").write_text("what a dead rank leaves")
    places.open("train", address="127.0.0.1", one_machine=True)  # the one before it may still be in use
    assert not os.path.exists(first.folder)
    assert os.path.isdir(second.folder)
    places.close()
    assert os.listdir(root) == []


def test_members_on_several_machines_have_a_port_and_no_folder(places, root):
    place = places.open("train", address="127.0.0.2", one_machine=False)
    assert (place.address, place.folder, os.listdir(root)) == ("127.0.0.2", "", [])
    held = socket.socket(fileno=os.dup(place.listen_fd))
    with held:
        assert held.getsockname() == ("127.0.0.2", place.port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.2", place.port))
    places.close()
    with socket.socket() as other:
        other.bind(("127.0.0.2", place.port))


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")
def test_another_user_cannot_enter_the_folder(places):
    place = places.open("train", address="127.0.0.1", one_machine=True)
    store = Path(place.folder, "store")
    store.write_text("keys")
    store.chmod(0o644)  # as FileStore makes it
    reading = f"import os; print(open({str(store)!r}).read())"
    writing = f"open({place.folder + '/more'!r}, 'w')"
    for attempt in (reading, writing, f"import os; print(os.listdir({place.folder!r}))"):
        tried = subprocess.run(
            ["setpriv", "--reuid", NOBODY, "--clear-groups", sys.executable, "-I", "-S", "-c", attempt],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert tried.returncode != 0
        assert tried.stdout == ""
        assert "Permission denied" in tried.stderr, tried.stderr


HOLDING = """
import sys, tempfile, time
from rl_core.cluster.group_rendezvous import RendezvousPoints
tempfile.tempdir = sys.argv[1]
print(RendezvousPoints().open("train", address="127.0.0.1", one_machine=True).folder, flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(places, root, monkeypatch):
    monkeypatch.setattr(group_rendezvous, "_SETTLED_S", 0.0)
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDING, str(root)], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    killed, living = (holder.stdout.readline().strip() for holder in holders)
    foreign = root / "rl-group-link"
    foreign.symlink_to(living)
    try:
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait(30)
        places.open("train", address="127.0.0.1", one_machine=True)
        assert not os.path.exists(killed)
        assert os.path.isdir(living)
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(30)
            holder.stdout.close()


def test_only_folders_of_places_are_removed_by_name(tmp_path, places):
    place = places.open("train", address="127.0.0.1", one_machine=True)
    for other in (str(tmp_path), "", "rl-group-relative"):
        remove_folder(other)
    assert tmp_path.is_dir()
    remove_folder(place.folder)
    assert not os.path.exists(place.folder)


def test_a_machine_without_room_for_the_folder_says_what_to_do(places, root, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(root / "missing"))
    with pytest.raises(EnvironmentProblem, match=r"can be made in .*missing on .*: No such file .*\n    free"):
        places.open("train", address="127.0.0.1", one_machine=True)


def test_an_address_that_this_machine_lacks_is_a_clear_error(places, root):
    with pytest.raises(EnvironmentProblem, match=r"no port of 203\.0\.113\.9 can be bound on "):
        places.open("train", address="203.0.113.9", one_machine=True)
    assert os.listdir(root) == []


class Worker:
    """A worker's handle: which machine it is on, and the places that it was asked for."""

    def __init__(self, machine):
        self.node = SimpleNamespace(remote=lambda: machine)
        self.rendezvous_point = SimpleNamespace(remote=lambda *asked: Rendezvous("127.0.0.1", 1, str(asked)))


@pytest.fixture
def pool(tmp_path, monkeypatch):
    made = WorkerPool(manifest={}, logs=tmp_path, deadlines=Deadlines(start_s=1, call_s=1))
    monkeypatch.setattr(made, "get", lambda calls, **_options: list(calls))
    return made


def test_members_of_a_group_meet_by_files_where_all_are_on_one_machine(pool):
    first, beside, away = Worker("a"), Worker("a"), Worker("b")
    assert pool.rendezvous_point([first, beside], purpose="weights").folder == "('weights', True)"
    assert pool.rendezvous_point([first, away], purpose="generate", together=False).folder == "('generate', False)"


def test_a_machine_that_joins_workers_on_loopback_is_no_member_of_their_groups_and_told_why(pool):
    with pytest.raises(EnvironmentProblem) as caught:
        pool.rendezvous_point([Worker("a"), Worker("b")], purpose="weights")
    assert str(caught.value) == (
        "a machine joined the cluster after the workers of the first one had started, and these listen on loopback "
        "only\n    set run.network_interface for a cluster that grows from one machine"
    )
