"""Where a local Ray keeps its session: a folder whose name leaves room for those of its sockets."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from rl_core.errors import EnvironmentProblem

SOCKET_NAME_BYTES = 103
"""Longest name of a Unix socket on every system (Linux: 107)."""
_OF_A_SESSION = len("/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store")
_SHORT = "/tmp"


@contextmanager
def ray_folder() -> Iterator[str | None]:
    """The folder to start Ray with for as long as the block lasts, as ``_temp_dir``; None: Ray's own choice.

    Where the name of the temporary folder is too long for sockets, a link in ``/tmp`` stands for it: the files stay
    where they belong.

    Raises:
        EnvironmentProblem: the temporary folder cannot be used; names the variable that chose it.
    """
    variables = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)  # what Ray looks at
    variable = next((name for name in variables if os.environ.get(name)), "")
    root = os.path.abspath(os.environ[variable]) if variable else _SHORT
    named = f"the temporary folder {root}" + (f" ({variable})" if variable else "")
    if not (os.path.isdir(root) and os.access(root, os.W_OK | os.X_OK)):
        what = "cannot be written" if os.path.isdir(root) else "does not exist"
        raise EnvironmentProblem(f"{named} {what}, and Ray needs it\n    export {variable or 'TMPDIR'}=/tmp")
    target = os.path.join(root, "ray")
    if len(os.fsencode(target)) + _OF_A_SESSION <= SOCKET_NAME_BYTES:
        yield None
        return
    try:
        os.makedirs(target, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="rl-", dir=_SHORT)
    except OSError as error:
        raise EnvironmentProblem(
            f"the name of {named} is too long for Ray's sockets, and no link to it can be made in {_SHORT}: "
            f"{error.strerror}\n    export {variable or 'TMPDIR'}=/a/short/one"
        ) from error
    try:
        link = os.path.join(folder, "ray")
        os.symlink(target, link, target_is_directory=True)
        yield link
    finally:
        shutil.rmtree(folder, ignore_errors=True)
