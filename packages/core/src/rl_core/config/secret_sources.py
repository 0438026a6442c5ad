"""Sources of ``${secret:NAME}``: a private file, the output of a command, or the system's keyring."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import selectors
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator
from rl_secrets.redaction import hide_secrets

from rl_core.config.durations import Duration
from rl_core.config.paths import ConfigPath
from rl_core.config.section import Section

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

KEPT_FILE = "secrets.json"
"""Next to a run's config.yaml, readable by its owner only: the secrets that were typed into the config."""
TYPED = "typed."
"""Prefix of their names."""

MOST_BYTES = 64 * 2**10
_MOUNTED = ("/run/", "/var/run/")
"""A container's runtime mounts secrets below these, and decides who may read them."""
_FOLDERS = ("/run/secrets",)
_POLL_S = 0.1


class SecretSource(Section):
    """The source of a secret: exactly one of ``file``, ``command`` and ``keyring``."""

    file: ConfigPath | None = Field(None, description="File that only you may read (chmod 600); its text is the value.")
    command: str | tuple[str, ...] | None = Field(
        None, description="Command whose output is the value, e.g. 'pass show hub'; it runs without a shell."
    )
    keyring: str | None = Field(None, description="Service in the system's keyring (pip install 'rl-core[keyring]').")
    user: str | None = Field(None, description="User name in the keyring; default: the secret's own name.")
    timeout: Duration = Field(30.0, description="Longest that the command or the keyring may take.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.file, self.command, self.keyring)) != 1:
            raise ValueError("give exactly one of 'file', 'command' and 'keyring'")
        if self.command is not None and not _words(self.command):
            raise ValueError("the command is empty")
        if self.user is not None and self.keyring is None:
            raise ValueError("'user' belongs to 'keyring'")
        return self


class SecretUnavailable(Exception):
    """A secret cannot be had: ``message`` says why, ``fix`` what to type."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


def default_folder() -> str:
    """Folder of secrets that are not in ``run.secrets``: ``$XDG_CONFIG_HOME/rl/secrets``, one file each."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(home, "rl", "secrets")


def find_secret(name: str, source: SecretSource | None, *, folder: str) -> str | int | float:
    """The value of ``${secret:NAME}``.

    Args:
        source: what ``run.secrets`` says of it; without it the default folders are searched.
        folder: folder of the config file, which holds :data:`KEPT_FILE` where that is a run's.

    Raises:
        SecretUnavailable: there is none, it may be read by others, or its command failed or took too long.
    """
    if source is not None:
        return _from_source(name, source)
    if name.startswith(TYPED):
        return _kept(name, os.path.join(folder, KEPT_FILE))
    own = default_folder()
    for folder in (own, *_FOLDERS):
        file = os.path.join(folder, name)
        if os.path.lexists(file):
            return _one_value(read_private(file), file)
    raise SecretUnavailable(
        f"there is no secret {name!r}: neither 'run.secrets' nor {own} has it",
        f"type: mkdir -p -m 700 {own}; (umask 077; cat > {os.path.join(own, name)})    "
        f"or write run: {{secrets: {{{name}: {{command: …}}}}}}",
    )


def _from_source(name: str, source: SecretSource) -> str:
    if source.file is not None:
        return _one_value(read_private(source.file), source.file)
    if source.command is not None:
        words = _words(source.command)
        return _one_value(_output(words, source.timeout, what=f"the command {words[0]!r}"), f"the command {words[0]!r}")
    if importlib.util.find_spec("keyring") is None:
        raise SecretUnavailable(
            f"the secret {name!r} is in the keyring, and the Python package 'keyring' is not installed",
            "pip install 'rl-core[keyring]'",
        )
    service, user = str(source.keyring), source.user or name
    # In a process of its own: a keyring may ask for a password, and wait for ever.
    text = _output([sys.executable, "-P", "-m", "keyring", "get", service, user], source.timeout, what="the keyring")
    return _one_value(text, f"the keyring's entry {service!r} of {user!r}")


def _words(command: str | Sequence[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


def _one_value(text: str, where: str) -> str:
    value = text.rstrip("\r\n")
    if not value.strip() or "\0" in value:
        raise SecretUnavailable(f"{where} holds no text" if not value.strip() else f"{where} holds a NUL character")
    return value


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


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SecretUnavailable(f"the secret in {where} is not UTF-8 text") from None


def _kept(name: str, file: str) -> str | int | float:
    lost = SecretUnavailable(
        f"the secret {name.removeprefix(TYPED)!r} was typed into the config of this run, and {file} does not have it",
        f"give it again: {name.removeprefix(TYPED)}=…, better as ${{secret:NAME}}",
    )
    if not os.path.lexists(file):
        raise lost
    try:
        value = kept_secrets(file).get(name)
    except SecretUnavailable as error:  # where a group shares the run, it is somebody else's
        raise SecretUnavailable(error.message, error.fix or lost.fix) from None
    if value is None:
        raise lost
    return value


def kept_secrets(file: str) -> Mapping[str, str | int | float]:
    """The contents of a run's :data:`KEPT_FILE`, by name.

    Raises:
        SecretUnavailable: as :func:`read_private`, or it is damaged.
    """
    try:
        content: Any = json.loads(read_private(file))
        values = dict(content["secrets"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SecretUnavailable(f"{file} is damaged") from None
    return {k: v for k, v in values.items() if isinstance(v, str | int | float) and not isinstance(v, bool)}


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
