"""Shell blocks of the documentation, command by command: each is looked up, and run where that is cheap.

`rl` command lines are parsed by the real parser; those that start no training are run in this process. What pip is
asked for must be a package of this repository, one that the page made before, or a dependency declared somewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import site
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from rl_core.cli.main import build_command, main
from rl_core.discovery.registry import load_registry
from support import ROOT

RUN_HERE = {"plugins", "check", "schema", "runs", "plugin new"}
TOOLS = {"build", "hatch", "pre-commit", "twine"}
OTHER_PROGRAMS = {"pre-commit", "pytest", "tensorboard", "twine"}


class WrongCommand(AssertionError):
    """A command line that a reader could not use."""


def run_shell(text: str) -> None:
    """Look at every command of a shell block, in the working directory, which ``cd`` changes for good."""
    for words, target in commands(text):
        said = run_command(words)
        if target:
            Path(target).write_text(said)


def commands(text: str) -> list[tuple[list[str], str]]:
    """(words, file that ``>`` names or ``""``) of each command; ``&&``, ``;`` and line ends part them."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
        tokens.whitespace_split, tokens.commenters = True, "#"
        part: list[str] = []
        for token in [*tokens, ";"]:
            if token not in ("&&", ";"):
                part.append(token)
                continue
            end = part.index(">") if ">" in part else len(part)
            if part[:end]:
                found.append((part[:end], part[end + 1] if end < len(part) else ""))
            part = []
    return found


def run_command(words: list[str]) -> str:
    """What a command wrote, where it was run; empty where it was only looked up."""
    program, *arguments = words
    if program in ("python", "python3") and arguments[:2] == ["-m", "pip"]:
        program, arguments = "pip", arguments[2:]
    if program == "rl":
        return run_rl(arguments)
    if program == "pip":
        look_up_packages(arguments)
    elif program == "hatch":
        look_up_script(arguments)
    elif program == "cd":
        os.chdir(arguments[0])
    elif program in ("python", "python3"):
        if not (arguments[0] == "-m" and arguments[1] in TOOLS) and not Path(arguments[0]).is_file():
            raise WrongCommand(f"there is no file {arguments[0]}")
    elif program not in OTHER_PROGRAMS:
        raise WrongCommand(f"{program} is not a program the documentation may ask for")
    return ""


def run_rl(arguments: list[str]) -> str:
    """Parse ``rl …`` with the real parser; run it if it is cheap.

    Raises:
        WrongCommand: the command line is refused, or the command fails.
    """
    command, context, rest = build_command(load_registry()), None, list(arguments)
    name: list[str] = []
    while rest and hasattr(command, "get_command") and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise WrongCommand(f"rl has no command {' '.join([*name, rest[0]])}")
        command, name, rest = found, [*name, rest[0]], rest[1:]
    try:
        command.make_context("rl " + " ".join(name), rest)
    except SystemExit as end:  # --help and --version
        if end.code:
            raise
    except Exception as error:  # what click raises on a command line it does not understand
        raise WrongCommand(f"rl {shlex.join(arguments)}: {error}") from error
    if " ".join(name) not in RUN_HERE:
        return ""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    if code:
        raise WrongCommand(f"rl {shlex.join(arguments)}: exit code {code}\n{out.getvalue()}{err.getvalue()}")
    return out.getvalue()


def look_up_packages(arguments: list[str]) -> None:
    """Every package of a ``pip install`` or ``pip uninstall`` exists, with the extras that are asked for."""
    takes_value, skip = {"--index-url", "--find-links", "--constraint"}, False
    for word in arguments[1:]:
        if skip or word.startswith("-"):
            skip = not skip and word in takes_value
            continue
        name, _, extras = re.sub(r"[=<>~!].*", "", word).partition("[")
        project = Path(name if name.startswith(".") else _folder(name), "pyproject.toml")
        if project.is_file():
            declared = tomllib.loads(project.read_text())["project"].get("optional-dependencies", {})
            if name.startswith("."):
                install(project.parent)
            if lacking := {extra for extra in extras.rstrip("]").split(",") if extra} - declared.keys():
                raise WrongCommand(f"{name} has no extra {', '.join(sorted(lacking))}")
        elif name.startswith((".", "rl-")) or name not in _dependencies() | TOOLS:
            raise WrongCommand(f"there is no package {name}")


def install(folder: Path) -> str:
    """Make a package importable in this process, as ``pip install -e`` would; returns the folder of its metadata."""
    wheels, target = Path(tempfile.mkdtemp()), tempfile.mkdtemp()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel:editable", "-d", str(wheels)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    zipfile.ZipFile(next(wheels.glob("*.whl"))).extractall(target)
    site.addsitedir(target)
    importlib.invalidate_caches()
    return target


def look_up_script(arguments: list[str]) -> None:
    """``hatch run [environment:]script`` is in hatch.toml."""
    if arguments[0] != "run":
        return
    environment, _, script = arguments[1].rpartition(":")
    if script not in scripts(environment or "default"):
        raise WrongCommand(f"hatch.toml has no script {arguments[1]}")


def scripts(environment: str) -> dict[str, str | list[str]]:
    """What ``hatch run`` knows in an environment of hatch.toml, inherited scripts included; {} if there is none."""
    environments = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    found: dict[str, str | list[str]] = {}
    while environment in environments:
        found = environments[environment].get("scripts", {}) | found
        template = environments[environment].get("template", "default")
        environment = "" if template == environment or environment == "default" else template
    return found


def _folder(package: str) -> Path:
    """Where a package is: made here by an earlier command, among the examples, or in the repository."""
    short = package.removeprefix("rl-")
    places = (Path(package), Path("..", package), ROOT / "examples" / "plugins" / package, ROOT / "packages" / short)
    return next((place for place in places if place.is_dir()), Path(package))


def _dependencies() -> set[str]:
    """Every name that some package, environment or constraint of the repository mentions."""
    files = [*ROOT.glob("packages/*/pyproject.toml"), ROOT / "hatch.toml", ROOT / "constraints.txt"]
    return set(re.findall(r"[A-Za-z][\w.-]*", " ".join(file.read_text() for file in files)))
