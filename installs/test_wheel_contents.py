"""What every wheel holds besides code."""

from __future__ import annotations

from email import message_from_bytes
from zipfile import ZipFile

from support import ROOT


def test_every_wheel_carries_the_licence_and_names_it(wheels):
    wanted = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    licence = (ROOT / "LICENSE").read_bytes()
    seen = set()
    for path in wheels.glob("*.whl"):
        name = path.name.partition("-")[0].replace("_", "-").removeprefix("rl-")
        if name not in wanted:
            continue  # the example plugin
        with ZipFile(path) as archive:
            info = next(one.split("/")[0] for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
            assert archive.read(f"{info}/licenses/LICENSE") == licence, path.name
            metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        assert metadata["License-Expression"] == "Apache-2.0", path.name
        assert metadata.get_all("License-File") == ["LICENSE"], path.name
        seen.add(name)
    assert seen == wanted
