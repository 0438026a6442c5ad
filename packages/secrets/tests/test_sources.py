"""A secret that a file, a command or the keyring holds, and what is refused."""

from __future__ import annotations

import os
import sys
import time

import pytest
from rl_secrets.sources import SecretUnavailable, from_command, from_file, from_keyring


def write(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_file_gives_its_text_without_the_line_end(tmp_path):
    assert from_file(write(tmp_path / "hub", " two words \r\n")) == " two words "


@pytest.mark.parametrize(
    ("text", "mode", "message", "fix"),
    [
        ("hunter22", 0o640, "the secret in {file} may be read by others (mode 0640)", "chmod 600 {file}"),
        (" \n", 0o600, "{file} holds no text", ""),
        ("a\0b", 0o600, "{file} holds a NUL character", ""),
        ("x" * 70_000, 0o600, "the secret in {file} has more than 64 KiB", ""),
    ],
)
def test_a_file_that_will_not_do_is_refused_with_the_reason(text, mode, message, fix, tmp_path):
    file = write(tmp_path / "hub", text, mode)
    with pytest.raises(SecretUnavailable) as caught:
        from_file(file)
    assert (caught.value.message, caught.value.fix) == (message.format(file=file), fix.format(file=file))
    assert "hunter22" not in str(caught.value)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretUnavailable, match="it is no regular file"):
        from_file(str(tmp_path / "pipe"))


def test_a_command_gives_its_output_and_is_told_nothing():
    assert from_command(["sh", "-c", "cat; echo value"], timeout_s=30) == "value"


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path):
    started = time.monotonic()
    script = f"(sleep 2; touch {tmp_path / 'alive'}) & sleep 60"
    with pytest.raises(SecretUnavailable, match=r"the command 'sh' for a secret did not end within 0.5 s"):
        from_command(["sh", "-c", script], timeout_s=0.5)
    time.sleep(max(0.0, started + 3 - time.monotonic()))
    assert not (tmp_path / "alive").exists()


def test_the_keyring_is_asked_for_the_entry_of_a_user(tmp_path, monkeypatch):
    (tmp_path / "keyring.py").write_text("import sys\nprint('-'.join(sys.argv[1:]))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert from_keyring("training", "me", timeout_s=60) == "get-training-me"
    (tmp_path / "keyring.py").write_text("raise SystemExit('no backend')\n")
    with pytest.raises(SecretUnavailable, match=r"the keyring for a secret failed \(exit code 1\): no backend"):
        from_keyring("training", "me", timeout_s=60)


def test_a_command_that_fails_says_why_without_its_secrets():
    with pytest.raises(SecretUnavailable, match=r"failed \(exit code 3\): wrong token=\*\*\*"):
        from_command(
            [sys.executable, "-c", "raise SystemExit(__import__('os').write(2, b'wrong tok' + b'en=hunter22') and 3)"],
            timeout_s=60,
        )
