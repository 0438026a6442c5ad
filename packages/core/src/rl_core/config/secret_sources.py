"""Which source a ``${secret:NAME}`` has: what ``run.secrets`` says, a folder of secrets, or a run's own file."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator
from rl_secrets.sources import SecretUnavailable, from_command, from_file, from_keyring, read_private

from rl_core.config.durations import Duration
from rl_core.config.paths import ConfigPath
from rl_core.config.section import Section

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

KEPT_FILE = "secrets.json"
"""Next to a run's config.yaml, readable by its owner only: the secrets that were typed into the config."""
TYPED = "typed."
"""Prefix of their names."""

_FOLDERS = ("/run/secrets",)


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
            return from_file(file)
    raise SecretUnavailable(
        f"there is no secret {name!r}: neither 'run.secrets' nor {own} has it",
        f"type: mkdir -p -m 700 {own}; (umask 077; cat > {os.path.join(own, name)})    "
        f"or write run: {{secrets: {{{name}: {{command: …}}}}}}",
    )


def _from_source(name: str, source: SecretSource) -> str:
    if source.file is not None:
        return from_file(source.file)
    if source.command is not None:
        return from_command(_words(source.command), timeout_s=source.timeout)
    if importlib.util.find_spec("keyring") is None:
        raise SecretUnavailable(
            f"the secret {name!r} is in the keyring, and the Python package 'keyring' is not installed",
            "pip install 'rl-core[keyring]'",
        )
    return from_keyring(str(source.keyring), source.user or name, timeout_s=source.timeout)


def _words(command: str | Sequence[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


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
        SecretUnavailable: as :func:`rl_secrets.sources.read_private`, or it is damaged.
    """
    try:
        content: Any = json.loads(read_private(file))
        values = dict(content["secrets"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SecretUnavailable(f"{file} is damaged") from None
    return {k: v for k, v in values.items() if isinstance(v, str | int | float) and not isinstance(v, bool)}
