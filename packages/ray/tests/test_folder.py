"""Ray's folder: closed to other users, with short names, and removed by the next one where its owner was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_ray.errors import RayProblem
from rl_ray.folder import SOCKET_NAME_BYTES, RayFolder, in_use, remove_folder, sweep

SOCKET = "r1/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
KILLED = """
import os, signal
from rl_ray.folder import RayFolder
print(RayFolder().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def without_variables(monkeypatch):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def long(tmp_path):
    """A folder whose name leaves no room for sockets."""
    folder = tmp_path / ("j" * 80)
    folder.mkdir()
    return folder


def test_only_this_user_can_enter(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = RayFolder()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert in_use(folder.path)
    folder.remove()
    assert not folder.path.exists()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_reached_by_a_short_name(variable, long, monkeypatch):
    monkeypatch.setenv(variable, str(long))
    folder = RayFolder()
    assert len(os.fsencode(folder.path / SOCKET)) <= SOCKET_NAME_BYTES
    assert folder.path.resolve().parent == long
    assert folder.path.parent.stat().st_mode & 0o777 == 0o700
    (folder.path / "session").touch()
    target = folder.path.resolve()
    folder.remove()
    assert not os.path.lexists(folder.path.parent)
    assert not target.exists()


def test_another_process_can_remove_it_by_its_short_name(long, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(long))
    folder = RayFolder().path
    remove_folder(folder)
    assert not os.path.lexists(folder.parent)
    assert list(long.iterdir()) == []


@pytest.mark.parametrize("where", ["short", "long"])
def test_what_a_killed_process_has_left_is_removed_by_the_next(where, tmp_path, long, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(long if where == "long" else tmp_path))
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.exists()
    assert not in_use(left)
    mine = RayFolder()
    assert not os.path.lexists(left)
    RayFolder().remove()
    assert mine.path.exists()
    mine.remove()


def test_a_folder_is_in_use_as_long_as_a_child_that_inherits_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = RayFolder()
    with subprocess.Popen(["sleep", "60"], pass_fds=folder.locks) as child:
        for descriptor in folder.locks:
            os.close(descriptor)
        assert in_use(folder.path)
        sweep(str(tmp_path))
        assert folder.path.exists()
        child.kill()
    assert not in_use(folder.path)


def test_only_folders_of_our_own_are_swept(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "rl-ray-link").symlink_to(precious)
    (tmp_path / "rl-ray-file").touch()
    (tmp_path / "rl-ray-new").mkdir()  # somebody is about to make a lock in it
    old = tmp_path / "rl-ray-old"
    old.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    sweep(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "rl-ray-file", "rl-ray-link", "rl-ray-new"]


def test_a_folder_that_is_not_there_is_named_with_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(RayProblem) as caught:
        RayFolder()
    assert str(caught.value) == (
        f"the temporary folder {tmp_path}/gone (TMPDIR) does not exist, and Ray needs it\n    export TMPDIR=/tmp"
    )


def test_where_no_link_can_be_made_the_variable_is_named(tmp_path, long, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("rl_ray.folder._SHORT", str(tmp_path / "gone"))
    with pytest.raises(RayProblem, match=r"\(TMPDIR\) is too long for Ray's sockets, and no link to it"):
        RayFolder()
    assert list(long.iterdir()) == []
