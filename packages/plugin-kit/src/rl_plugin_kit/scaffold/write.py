"""Rendering the templates of a kind into a new folder.

A template is a file under ``templates/common`` or ``templates/<kind>`` whose name ends in ``.tmpl``. Its text is a
:class:`string.Template` (``$$`` for a dollar sign). In its path ``__module__`` becomes the import name and a leading
``dot_`` a dot, because build tools and linters treat real dot files and Python files as their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from packaging.version import Version
from rl_core.errors import ConfigError, EnvironmentProblem

from rl_plugin_kit.scaffold.names import PackageNames

SUFFIX = ".tmpl"


def write_package(names: PackageNames, directory: Path, *, core: str) -> list[Path]:
    """Write a complete package into ``directory``, which must not exist.

    Args:
        names: what to call it.
        directory: the new folder; missing parents are created.
        core: version of rl-core it is written for.

    Returns:
        the files, relative to ``directory``, sorted.

    Raises:
        ConfigError: something is there already; nothing was written.
        EnvironmentProblem: the folder cannot be written.
    """
    rendered = render_package(names, core=core)
    _make_folder(directory)
    try:
        for path, text in rendered.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(directory, error) from error
    return sorted(rendered)


def _make_folder(directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{directory} cannot be made: {error.filename} is inside or is itself a file") from error
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        directory.mkdir()  # fails where anything is there, so nothing can be overwritten
    except FileExistsError as error:
        raise ConfigError(
            f"{directory} exists already; nothing was written\n    choose another folder with --directory, or remove it"
        ) from error
    except OSError as error:
        raise _unwritable(directory, error) from error


def _unwritable(directory: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(f"{directory} cannot be written: {error.strerror}: {error.filename}")


def render_package(names: PackageNames, *, core: str) -> dict[Path, str]:
    """Path in the package → text of every file."""
    values = placeholders(names, core=core)
    root = files("rl_plugin_kit.scaffold").joinpath("templates")
    values["development"] = _render(root.joinpath(f"development.md{SUFFIX}"), values).rstrip("\n")
    rendered = {}
    for folder in ("common", names.kind.name):
        for parts, template in _templates(root.joinpath(folder)):
            rendered[_target(parts, names)] = _render(template, values)
    return rendered


def placeholders(names: PackageNames, *, core: str) -> dict[str, str]:
    """What templates may refer to."""
    kind, versions = names.kind, core_range(core)
    required = [f"rl-core{versions}", "pydantic>=2.12,<3", *(_ranged(one, versions) for one in kind.dependencies)]
    tests = [f"rl-plugin-kit{versions}", "ruff>=0.9", *(_ranged(one, versions) for one in kind.test_dependencies)]
    return {
        "package": names.package,
        "module": names.module,
        "name": names.name,
        "identifier": names.identifier,
        "class_name": names.class_name,
        "kind": kind.name,
        "label": kind.component.replace("_", " "),
        "article": "an" if kind.component[0] in "aeiou" else "a",
        "suite": kind.suite,
        "summary": kind.summary[0].upper() + kind.summary[1:],
        "dependencies": _toml_lines(sorted(required)),
        "test_dependencies": _toml_lines(sorted(tests)),
    }


def core_range(version: str) -> str:
    """The versions a package written for ``version`` works with: ``>=0.1,<0.2``; from 1.0 on ``>=1.2,<2``."""
    parsed = Version(version)
    end = f"0.{parsed.minor + 1}" if parsed.major == 0 else f"{parsed.major + 1}"
    return f">={parsed.major}.{parsed.minor},<{end}"


def _render(template: Traversable, values: dict[str, str]) -> str:
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _ranged(dependency: str, versions: str) -> str:
    return f"{dependency}{versions}" if dependency.startswith("rl-") else dependency


def _toml_lines(values: list[str]) -> str:
    return "\n".join(f'    "{value}",' for value in values)


def _templates(folder: Traversable, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        here = (*parts, entry.name)
        if entry.is_dir():
            yield from _templates(entry, here)
        elif entry.name.endswith(SUFFIX):
            yield here, entry


def _target(parts: tuple[str, ...], names: PackageNames) -> Path:
    path = Path(*(f".{part[4:]}" if part.startswith("dot_") else part for part in parts))
    return Path(str(path).removesuffix(SUFFIX).replace("__module__", names.module))
