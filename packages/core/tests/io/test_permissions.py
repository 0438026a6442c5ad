"""Modes of a run directory, whatever the umask."""

from __future__ import annotations

import os
import stat

import pytest
from rl_core.io.permissions import apply_permissions, run_folder, umask_in_force, write_secret_file


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


with_umask = pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], indirect=True)


@with_umask
@pytest.mark.parametrize(
    ("permissions", "folder_mode", "file_mode"),
    [("private", 0o700, 0o600), ("group", 0o2770, 0o660), (None, 0o700, 0o600)],
)
def test_a_new_run_directory_has_its_mode_and_so_has_what_is_made_in_it(
    tmp_path, umask, permissions, folder_mode, file_mode
):
    folder = tmp_path / "runs" / "one"
    with run_folder(folder, permissions):
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "file").touch()
        assert umask_in_force() == 0o777 & ~folder_mode
    assert os.umask(umask) == umask
    assert umask_in_force() is None
    assert [mode(p) for p in (folder, folder / "a", folder / "a" / "b")] == [folder_mode] * 3
    assert mode(folder / "a" / "b" / "file") == file_mode
    assert mode(folder.parent) == 0o777 & ~umask


@with_umask
@pytest.mark.parametrize(("existing", "file_mode"), [(0o755, 0o644), (0o2770, 0o660), (0o777, 0o666), (0o700, 0o600)])
def test_an_existing_folder_keeps_its_mode_and_new_files_fit_it(tmp_path, umask, existing, file_mode):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(existing)
    with run_folder(folder, None):
        apply_permissions(folder, None)
        (folder / "file").touch()
    assert (mode(folder), mode(folder / "file")) == (existing, file_mode)


def test_a_mode_that_is_asked_for_is_given_to_everything_but_links_and_secrets(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "a.log").write_text("x")
    (folder / "link").symlink_to(outside)
    write_secret_file(folder / "secrets.json", {"a": 1})
    with run_folder(folder, "group"):
        apply_permissions(folder, "group")
    assert [mode(p) for p in (folder, folder / "logs")] == [0o2770] * 2
    assert [mode(p) for p in (folder / "logs" / "a.log", folder / "secrets.json", outside)] == [0o660, 0o600, 0o755]


@with_umask
def test_a_file_with_secrets_is_its_owners_from_the_first_byte_on(tmp_path, umask):
    file = tmp_path / "secrets.json"
    file.write_text("old")
    file.chmod(0o666)
    (tmp_path / f".secrets.json.{os.getpid()}.tmp").write_text("left by a crash")
    write_secret_file(file, {"a": "b"})
    assert (mode(file), file.read_text()) == (0o600, '{"a": "b"}')
    assert [p.name for p in tmp_path.iterdir()] == ["secrets.json"]


def test_a_folder_that_cannot_be_made_is_left_to_who_writes_there(tmp_path):
    (tmp_path / "file").touch()
    with run_folder(tmp_path / "file" / "run", "group"):
        pass
    assert umask_in_force() is None


def test_nothing_happens_where_the_folder_is_gone(tmp_path):
    apply_permissions(tmp_path / "gone", "private")
    assert not (tmp_path / "gone").exists()
