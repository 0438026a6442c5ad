"""Checkpoints under fire: killed at every call of a save, a disk without room, files that are cut or altered."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_core.errors import RLError, StorageError
from rl_core.training.checkpoint import CheckpointStore, RunState, read_state
from rl_core.training.manifest import _own_checksum, damage
from support import environment

KILLED_SAVES = Path(__file__).with_name("killed_saves.py")


@pytest.fixture(scope="module", params=["next", "again"])
def outcomes(request, tmp_path_factory):
    """``(scenario, what was found after a death at each call)``."""
    folder = tmp_path_factory.mktemp(request.param)
    done = subprocess.run(
        [sys.executable, KILLED_SAVES, request.param, folder],
        env=environment(""),
        capture_output=True,
        text=True,
        check=True,
    )
    return request.param, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_save_that_is_killed_at_any_call_leaves_the_old_checkpoint_or_the_new_one(outcomes):
    scenario, found = outcomes
    assert len(found) > 40
    assert [one["died"] for one in found] == [True] * (len(found) - 1) + [False]
    old = ("step-000001", "old") if scenario == "next" else ("step-000002", "old")
    seen = [(one["latest"], one["content"]) for one in found]
    if scenario == "next":
        switch = seen.index(("step-000002", "new"))
        assert seen == [old] * switch + [("step-000002", "new")] * (len(seen) - switch)
    else:
        # Between its two renames the replaced one is put back.
        assert set(seen) == {old, ("step-000002", "new")}
        assert seen == sorted(seen, key=lambda one: one[1], reverse=True)


def test_what_a_killed_save_left_is_gone_after_the_next_one(outcomes):
    scenario, found = outcomes
    expected = [["step-000003"]] if scenario == "next" else [["step-000002", "step-000003"]]
    assert [one["after"] for one in found] == expected * len(found)


def state(step):
    return RunState(stage="train", step=step, position=step, weights_version=step)


def write(content):
    def writer(folder):
        (folder / "policy").mkdir()
        (folder / "policy" / "weights.safetensors").write_bytes(content)

    return writer


@pytest.mark.parametrize("call", ["open", "write_text", "fsync", "rename"])
def test_without_disk_space_the_last_good_checkpoint_stays_and_nothing_half_written(tmp_path, monkeypatch, call):
    store = CheckpointStore(tmp_path, keep_last=1)
    good = store.save(state(1), write(b"good"))

    def no_room(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(folder):
        write(b"new")(folder)
        monkeypatch.setattr(os if call == "fsync" else Path, call, no_room)

    with pytest.raises(StorageError) as caught:
        store.save(state(2), fill)
    monkeypatch.undo()
    assert str(caught.value) == "the checkpoint of step 2 cannot be written: No space left on device"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert store.latest() == good
    assert store.save(state(2), write(b"new")).name == "step-000002"


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(state(1), write(b"x" * 5_000_000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2_000_000))
    with pytest.raises(StorageError) as caught:
        store.save(state(2), write(b"x"))
    assert str(caught.value) == (f"the checkpoint of step 2 needs about 5 MB, {tmp_path} has 2 MB left")
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_every_file_is_on_disk_before_the_rename_that_makes_a_checkpoint_visible(tmp_path, monkeypatch):
    happened = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda f: (happened.append(os.readlink(f"/proc/self/fd/{f}")), sync(f)))
    monkeypatch.setattr(Path, "rename", lambda s, t: (happened.append("rename"), rename(s, t))[1])
    CheckpointStore(tmp_path).save(state(1), write(b"x"))
    names = [os.path.relpath(p, tmp_path) if p != "rename" else p for p in happened]
    temporary = names[0].partition("/")[0]
    assert temporary.startswith(".tmp-step-000001-")
    assert names == [
        f"{temporary}/policy/weights.safetensors",
        f"{temporary}/state.json",
        f"{temporary}/manifest.json",
        f"{temporary}/policy",
        temporary,
        "rename",
        ".",
    ]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    store = CheckpointStore(folder)
    for step in (1, 2):
        store.save(state(step), write(bytes(range(64))))
    return folder


def files_of(checkpoint):
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


def harm(file, data):
    """Cut the file, or flip one bit of it."""
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    if data.draw(st.booleans(), label="cut"):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    file.write_bytes(content)


@given(data=st.data())
def test_no_damage_of_any_file_gets_past_the_manifest(two_checkpoints, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("harmed")
    shutil.copytree(two_checkpoints, folder, dirs_exist_ok=True)
    newest = folder / "step-000002"
    file = data.draw(st.sampled_from(files_of(newest)), label="file")
    harm(file, data)
    store, records = CheckpointStore(folder), []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("rl_core.training.checkpoint")
    log.addHandler(handler)
    try:
        assert store.latest() == folder / "step-000001"
    finally:
        log.removeHandler(handler)
    assert read_state(folder / "step-000001") == state(1)
    (record,) = records
    assert record.getMessage().startswith(f"checkpoint {newest} is damaged (")
    assert str(file.relative_to(newest)) in record.getMessage()
    shutil.rmtree(folder / "step-000001")
    with pytest.raises(RLError) as caught:
        store.latest()
    first, second, fix = str(caught.value).splitlines()
    assert first == f"every checkpoint in {folder} is damaged"
    assert second.startswith("    step-000002: ")
    assert fix == "    restore one from a copy, or move the folder away and train this stage again with --allow restart"
    shutil.rmtree(folder)


def test_a_manifest_without_its_last_byte_is_damaged(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "step-000002" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    assert CheckpointStore(tmp_path).latest() == tmp_path / "step-000001"
    assert damage(manifest.parent) == "manifest.json is damaged: its last line has no end"


@given(data=st.data())
def test_a_damaged_state_without_its_manifest_is_explained_too(two_checkpoints, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("state")
    shutil.copytree(two_checkpoints / "step-000002", folder, dirs_exist_ok=True)
    harm(folder / "state.json", data)
    expected = f"\n    restore the checkpoint from a copy, or remove {folder} to use the one before"
    try:
        found = read_state(folder)
    except RLError as error:
        found = str(error)
    assert found != state(2)
    if isinstance(found, str):
        assert found.startswith(f"{folder}/state.json is damaged: ")
        assert found.endswith(expected)
    shutil.rmtree(folder)


def test_a_manifest_that_names_files_elsewhere_is_damage(tmp_path):

    path = CheckpointStore(tmp_path / "c").save(state(1), write(b"x"))
    (tmp_path / "c" / "secret").write_text("x")
    listed = {"../secret": {"bytes": 1, "crc32": 0}}
    (path / "manifest.json").write_text(json.dumps({"format": 2, "files": listed, "crc32": _own_checksum(listed)}))
    assert damage(path) == "manifest.json is damaged: it lists '../secret'"


def test_a_worker_that_outlives_its_driver_does_not_write_into_the_next_checkpoint(tmp_path):
    orphaned = []
    CheckpointStore(tmp_path).begin(state(2), orphaned.append)
    store = CheckpointStore(tmp_path)
    store.begin(state(2), write(b"mine"))
    (orphaned[0] / "policy").mkdir()
    (orphaned[0] / "policy" / "weights.safetensors").write_bytes(b"theirs")
    path = store.commit(2)
    assert (path / "policy" / "weights.safetensors").read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]
