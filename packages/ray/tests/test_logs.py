"""Ray's logs in the run directory are regular files that Ray wrote, whatever else lies among them."""

from __future__ import annotations

import os

import pytest
from rl_ray.logs import keep_logs, link_logs


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "session" / "logs"
    (folder / "old").mkdir(parents=True)
    (folder / "gcs_server.out").write_text("started")
    (folder / "old" / "raylet.out").write_text("before")
    return folder


def test_logs_are_linked_and_then_kept(source, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    link_logs(source, logs)
    assert (logs / "ray").resolve() == source
    keep_logs(source, logs)
    assert not (logs / "ray").is_symlink()
    assert (logs / "ray" / "gcs_server.out").read_text() == "started"
    assert (logs / "ray" / "old" / "raylet.out").read_text() == "before"
    link_logs(source, logs)  # of another Ray in the same run: what is there gets another name
    assert sorted(p.is_symlink() for p in logs.iterdir()) == [False, True]


def test_neither_links_nor_pipes_are_followed(source, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("do not copy")
    (source / "link.out").symlink_to(secret / "key")
    (source / "folder").symlink_to(secret, target_is_directory=True)
    os.mkfifo(source / "pipe.out")  # reading it would wait for ever
    keep_logs(source, tmp_path / "logs")
    kept = [str(p.relative_to(tmp_path / "logs")) for p in (tmp_path / "logs").rglob("*") if p.is_file()]
    assert sorted(kept) == ["ray/gcs_server.out", "ray/old/raylet.out"]
