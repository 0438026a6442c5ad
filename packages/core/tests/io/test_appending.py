"""Lines wait in memory while the disk is full."""

import errno
import logging
import os

import pytest
from rl_core.io import appending
from rl_core.io.appending import AppendedFile, LogFile


@pytest.fixture
def disk(monkeypatch):
    """A disk with room for ``disk["room"]`` bytes, which takes what fits of a line, as real ones do."""
    state, write = {"room": 0}, os.write

    def limited(file, data):
        if data and not state["room"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, data[: state["room"]])
        state["room"] -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    return state


@pytest.fixture
def file(tmp_path):
    file = AppendedFile(tmp_path / "lines")
    yield file
    file.close()


def full(file):
    return f"{file.path}: No space left on device; new lines are kept in memory, and written when there is room"


def test_lines_wait_for_room_in_their_order_and_no_line_is_torn(file, disk, caplog):
    disk["room"] = 6
    for line in ("one", "two", "three"):
        file.append(line)
    assert file.path.read_text() == "one\ntw"
    disk["room"] = 100
    file.append("four")
    assert file.path.read_text() == "one\ntwo\nthree\nfour\n"
    assert caplog.messages == [full(file), f"{file.path}: there is room again; nothing is missing"]


def test_waiting_lines_can_be_written_without_a_further_one(file, disk):
    file.append("one")
    file.retry()
    assert file.path.read_text() == ""
    disk["room"] = 100
    file.retry()
    assert file.path.read_text() == "one\n"


def test_lines_that_are_about_to_come_again_are_not_written_when_the_file_is_opened_again(file, disk):
    disk["room"] = 2
    for key, line in enumerate(("one", "two", "three")):
        file.append(line, key=key)
    file.path.write_text("")  # whoever asks for that has taken the torn line out
    disk["room"] = 100
    file.reopen(without=lambda key: key == 1)
    file.append("two again")
    assert file.path.read_text() == "one\nthree\ntwo again\n"


def test_more_than_memory_is_given_to_is_counted(file, disk, caplog, monkeypatch):
    monkeypatch.setattr(appending, "MOST_WAITING_BYTES", 8)
    for line in ("one", "two", "three", "four"):
        file.append(line)
    disk["room"] = 100
    file.retry()
    assert file.path.read_text() == "one\ntwo\n"
    assert caplog.messages[1:] == [
        f"{file.path}: there is room again; nothing is missing but 2 lines, for which there was no memory"
    ]


def test_what_waits_at_the_end_is_told_to_be_lost(file, disk, caplog):
    file.append("one")
    file.close()
    assert caplog.messages[1:] == [f"{file.path}: the last line is lost: the disk is full"]


def test_another_error_than_a_full_disk_is_raised(file):
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append("one")


def test_a_log_on_the_full_disk_gets_the_warning_about_itself_later(tmp_path, disk, capsys):
    handler = LogFile(tmp_path / "rl.log")
    logging.getLogger("rl").addHandler(handler)
    logging.getLogger("rl").warning("one")
    disk["room"] = 1000
    logging.getLogger("rl").warning("two")
    logging.getLogger("rl").removeHandler(handler)
    handler.close()
    lines = (tmp_path / "rl.log").read_text().splitlines()
    assert lines[:3] == ["one", f"{full(handler._file)}", "two"]
    assert "Traceback" not in capsys.readouterr().err
