"""Environments in which nothing can be imported but what the installed packages declare.

Downloading PyTorch into every environment would take minutes. Instead the distributions that a set of wheels declares,
directly or through others, are linked from the environment of the tests into a folder of the new one: the rest of that
environment cannot be seen from there. Our own wheels are installed by pip, which resolves their requirements and fails
where one is neither a wheel of ours nor linked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections import defaultdict
from collections.abc import Iterable
from email import message_from_bytes
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def declared(wheels: Path, packages: Iterable[str]) -> set[str]:
    """Names of the third-party distributions that packages need, directly or not, extras and markers considered.

    Args:
        wheels: folder with the wheels of this repository; all else is looked up in this environment.
        packages: requirements such as ``rl-core`` or ``rl-core[testing]``.
    """
    own = {canonicalize_name(path.name.partition("-")[0]): path for path in wheels.glob("*.whl")}
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(package) for package in packages]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        if name not in own:
            found.add(name)
        lines = _requires(own[name]) if name in own else metadata.requires(name) or []
        for line in lines:
            needed = Requirement(line)
            extras = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


def _requires(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []


def link(names: Iterable[str], folder: Path) -> None:
    """Link the files of distributions of this environment, and of no other, into ``folder``.

    A folder that belongs to one distribution alone becomes one link; one that several share is made anew.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for name, paths in _files().items():
        for path in paths:
            for part in (path, *path.parents):
                owners[str(part)].add(name)
    for name in names:
        for path in _files()[name]:
            _link_one(path, {name}, owners, folder)


def _link_one(path: PurePosixPath, owner: set[str], owners: dict[str, set[str]], folder: Path) -> None:
    for part in (*reversed(path.parents[:-1]), path):
        goal = folder / part
        if goal.is_symlink():
            return
        if part == path or owners[str(part)] == owner:
            goal.symlink_to(_site() / part)
            return
        goal.mkdir(exist_ok=True)


@cache
def _files() -> dict[str, list[PurePosixPath]]:
    """Distribution → its files below the folder of installed packages."""
    found: dict[str, list[PurePosixPath]] = {}
    for one in metadata.distributions(path=[str(_site())]):
        paths = [PurePosixPath(str(file)) for file in one.files or ()]
        found[canonicalize_name(one.name)] = [p for p in paths if p.parts[0] not in ("..", "__pycache__")]
    return found


def _site() -> Path:
    return Path(sysconfig.get_path("purelib"))


class Installation:
    """A fresh virtual environment with wheels of this repository and what they declare.

    Attributes:
        folder: where it is, and where its programs are run.
    """

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self._linked = folder / "linked"
        self._linked.mkdir()
        packages = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
        Path(packages, "linked.pth").write_text(f"{self._linked}\n")

    def install(self, *packages: str) -> None:
        """``pip install`` from wheels alone."""
        link(declared(self.wheels, packages), self._linked)
        self.pip("install", "--quiet", "--no-index", "--find-links", str(self.wheels), *packages)
        self.pip("check")

    def pip(self, *arguments: str) -> None:
        """The test environment's pip, working on this one."""
        self._run([sys.executable, "-m", "pip", "--python", str(self.folder / "venv" / "bin" / "python"), *arguments])

    def rl(self, *arguments: str, code: int = 0) -> str:
        """What ``rl`` writes to both outputs; fails on another exit code."""
        return self._run([str(self.folder / "venv" / "bin" / "rl"), *arguments], code=code)

    def download(self, package: str, folder: Path) -> None:
        """The wheels of a package and of all that it needs, as pip resolves them for an empty environment."""
        links = ["--find-links", str(self.wheels), "--only-binary", ":all:", "--dest", str(folder)]
        self._run([sys.executable, "-m", "pip", "download", "--quiet", *links, package])

    def modules(self) -> set[str]:
        """Top-level modules and packages that can be imported."""
        return set(self.python("-c", "import pkgutil; print(*(m.name for m in pkgutil.iter_modules()))").split())

    def python(self, *arguments: str) -> str:
        """Run the environment's Python."""
        return self._run([str(self.folder / "venv" / "bin" / "python"), *arguments])

    def _run(self, command: list[str], *, code: int = 0) -> str:
        hidden = ("PYTHONPATH", "RAY_ADDRESS", "RL_PLUGINS", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr
