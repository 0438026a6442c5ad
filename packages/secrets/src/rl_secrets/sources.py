"""Where a secret comes from: a file that only its owner may read, the output of a command, or the system's keyring."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence

from rl_secrets.redaction import hide_secrets

MOST_BYTES = 64 * 2**10
_MOUNTED = ("/run/", "/var/run/")
"""A container's runtime mounts secrets below these, and decides who may read them."""
_POLL_S = 0.1


class SecretUnavailable(Exception):
    """A secret cannot be had: ``message`` says why, ``fix`` what to type."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


def from_file(file: str) -> str:
    """The value in a file that nobody else may read; line ends at its end do not count.

    Raises:
        SecretUnavailable: as :func:`read_private`, or it holds no text.
    """
    return _one_value(read_private(file), file)


def from_command(words: Sequence[str], *, timeout_s: float) -> str:
    """The value that a command writes to standard output; it runs without a shell and has no standard input.

    Raises:
        SecretUnavailable: it cannot be started, fails, takes longer than ``timeout_s``, or writes no text or too much.
    """
    what = f"the command {words[0]!r}"
    return _one_value(_output(words, timeout_s, what=what), what)


def from_keyring(service: str, user: str, *, timeout_s: float) -> str:
    """The value of an entry of the system's keyring; needs the Python package ``keyring``.

    Raises:
        SecretUnavailable: there is none, or the keyring takes longer than ``timeout_s``.
    """
    # In a process of its own: a keyring may ask for a password, and wait for ever.
    words = [sys.executable, "-P", "-m", "keyring", "get", service, user]
    return _one_value(_output(words, timeout_s, what="the keyring"), f"the keyring's entry {service!r} of {user!r}")


def read_private(file: str) -> str:
    """The text of a file that nobody else may read.

    Raises:
        SecretUnavailable: it cannot be read, is no regular file, is large, or others may read it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SecretUnavailable(f"cannot read the secret in {file}: {reason}") from None
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SecretUnavailable(f"cannot read the secret in {file}: it is no regular file")
        mounted = os.path.abspath(file).startswith(_MOUNTED)
        if found.st_mode & 0o077 and not mounted:
            raise SecretUnavailable(
                f"the secret in {file} may be read by others (mode {found.st_mode & 0o777:04o})",
                f"chmod 600 {shlex.quote(file)}",
            )
        raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise SecretUnavailable(f"the secret in {file} has more than {MOST_BYTES >> 10} KiB")
    return _text(raw, file)


def _one_value(text: str, where: str) -> str:
    value = text.rstrip("\r\n")
    if not value.strip() or "\0" in value:
        raise SecretUnavailable(f"{where} holds no text" if not value.strip() else f"{where} holds a NUL character")
    return value


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SecretUnavailable(f"the secret in {where} is not UTF-8 text") from None


def _output(command: Sequence[str], timeout_s: float, *, what: str) -> str:
    """The output of a command; it is killed, with its children, after ``timeout_s``."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SecretUnavailable(f"{what} for a secret cannot be started: {reason}") from None
    try:
        written, said = _read_both(process, time.monotonic() + timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
    if written is None:
        raise SecretUnavailable(f"{what} for a secret did not end within {timeout_s:g} s", "raise its 'timeout'")
    if len(written) > MOST_BYTES:
        raise SecretUnavailable(f"{what} for a secret wrote more than {MOST_BYTES >> 10} KiB")
    if process.returncode != 0:
        last = hide_secrets(said.decode("utf-8", errors="replace").strip().rpartition("\n")[2][:200])
        raise SecretUnavailable(
            f"{what} for a secret failed (exit code {process.returncode}){': ' + last if last else ''}"
        )
    return _text(written, what)


def _read_both(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes | None, bytes]:
    """Output and errors of a process until it ends or has written too much; no output where it is late."""
    out, err = process.stdout, process.stderr
    assert out is not None
    assert err is not None
    found = {out.fileno(): b"", err.fileno(): b""}
    with selectors.DefaultSelector() as waiting:
        for descriptor in found:
            waiting.register(descriptor, selectors.EVENT_READ)
        while waiting.get_map() and len(found[out.fileno()]) <= MOST_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                return None, found[err.fileno()]
            ready = waiting.select(min(left, _POLL_S))
            if not ready and process.poll() is not None:  # what it left running holds its output open
                break
            for key, _ in ready:
                block = os.read(key.fd, 2**16)
                if not block:
                    waiting.unregister(key.fd)
                elif key.fd == out.fileno() or len(found[key.fd]) < MOST_BYTES:
                    found[key.fd] += block
    if len(found[out.fileno()]) <= MOST_BYTES:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None, found[err.fileno()]
    return found[out.fileno()], found[err.fileno()]
