"""Ray's sockets have short names, wherever the temporary folder is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rl_core.cluster.temporary import SOCKET_NAME_BYTES, ray_folder
from rl_core.errors import EnvironmentProblem

SOCKET = "session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"


@pytest.fixture(autouse=True)
def without_variables(monkeypatch):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_reached_by_a_short_name(variable, tmp_path, monkeypatch):
    long = tmp_path / ("j" * 80)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    with ray_folder() as folder:
        assert len(os.path.join(folder, SOCKET)) <= SOCKET_NAME_BYTES
        Path(folder, "session").touch()
        assert (long / "ray" / "session").exists()
    assert not os.path.lexists(folder)
    assert (long / "ray" / "session").exists()


def test_a_short_one_is_left_to_ray(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    with ray_folder() as folder:
        assert folder is None


def test_a_folder_that_is_not_there_is_named_with_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentProblem) as caught, ray_folder():
        pass
    assert str(caught.value) == (
        f"the temporary folder {tmp_path}/gone (TMPDIR) does not exist, and Ray needs it\n    export TMPDIR=/tmp"
    )


def test_where_no_link_can_be_made_the_variable_is_named(tmp_path, monkeypatch):
    long = tmp_path / ("j" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("rl_core.cluster.temporary._SHORT", str(tmp_path / "gone"))
    with (
        pytest.raises(EnvironmentProblem, match=r"\(TMPDIR\) is too long for Ray's sockets, and no link to it"),
        ray_folder(),
    ):
        pass
