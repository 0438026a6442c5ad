"""Files next to a run's config.yaml that are needed to read it again: typed secrets, and hashes of the environment.

``secrets.json`` (mode 0600) has the secrets that were typed into the config. ``environment.json`` has a salted hash of
every value from ``${env:…}`` that is no secret, so that a resume notices another value without storing the old one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from rl_secrets.sources import SecretUnavailable

from rl_core.config.secret_sources import KEPT_FILE, kept_secrets
from rl_core.errors import EnvironmentProblem
from rl_core.io.permissions import write_secret_file

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig

logger = logging.getLogger("rl")

ENVIRONMENT_FILE = "environment.json"
SIDECARS = frozenset({KEPT_FILE, ENVIRONMENT_FILE, f"{ENVIRONMENT_FILE}.tmp"})
"""The names of these files."""


def write_sidecars(folder: Path, config: RunConfig) -> None:
    """Write the files that ``config.to_yaml()`` needs; secrets of an earlier config of the run are kept.

    Raises:
        EnvironmentProblem: an earlier file belongs to another user, or is damaged.
        OSError: it cannot be written.
    """
    if config.typed_secrets:
        file = folder / KEPT_FILE
        try:
            earlier = dict(kept_secrets(str(file))) if os.path.lexists(file) else {}
        except SecretUnavailable as error:
            fix = f"\n    {error.fix or 'write ${secret:NAME} or ${env:NAME} in their place'}"
            raise EnvironmentProblem(f"cannot keep the secrets that are typed into the config: {error}{fix}") from None
        if earlier | dict(config.typed_secrets) != earlier:
            write_secret_file(file, {"format": 1, "secrets": earlier | dict(config.typed_secrets)})
    if config.from_environment:
        salt = secrets.token_hex(16)
        marks = {key: _mark(value, salt) for key, value in config.from_environment.items()}
        temporary = folder / f"{ENVIRONMENT_FILE}.tmp"
        temporary.write_text(json.dumps({"format": 1, "salt": salt, "marks": marks}, indent=1) + "\n")
        os.replace(temporary, folder / ENVIRONMENT_FILE)


def changed_in_environment(folder: Path, config: RunConfig) -> list[str]:
    """The keys whose value from ``${env:…}`` has changed since the run was started or last resumed."""
    try:
        content = json.loads((folder / ENVIRONMENT_FILE).read_text())
        salt, marks = str(content["salt"]), dict(content["marks"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s cannot be read (%s): changes of ${env:…} are not noticed", ENVIRONMENT_FILE, error)
        return []
    return [k for k, value in config.from_environment.items() if k in marks and marks[k] != _mark(value, salt)]


def _mark(value: str, salt: str) -> str:
    return hmac.new(salt.encode(), value.encode("utf-8", errors="surrogatepass"), hashlib.sha256).hexdigest()
