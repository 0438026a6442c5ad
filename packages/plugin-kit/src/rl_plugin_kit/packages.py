"""Writing a small installed package to a folder, to test discovery with the real thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

from rl_core.hookspecs import ENTRY_POINT_GROUP


def write_plugin(
    directory: Path,
    package: str,
    *,
    files: Mapping[str, str],
    version: str = "1.0",
    requires: Sequence[str] = ("rl-core>=0.1",),
    entry_point: str | None = None,
) -> Path:
    """Write a package as pip would have installed it: modules and a ``.dist-info`` folder.

    It is found by processes that have ``directory`` on ``sys.path``.

    Args:
        directory: the stand-in for ``site-packages``; created if missing.
        package: distribution name; the import name is the same with underscores.
        files: path inside the import package → source (dedented); an ``__init__.py`` is added.
        requires: the ``Requires-Dist`` lines.
        entry_point: value in the group ``rl_core.plugins``; default: ``<import name>.plugin``.

    Returns:
        the import package's folder.
    """
    module = package.replace("-", "_")
    root = directory / module
    root.mkdir(parents=True, exist_ok=True)
    for name, source in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")
    info = directory / f"{module}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    value = entry_point or f"{module}.plugin"
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{package} = {value}\n", encoding="utf-8")
    return root
