"""The wheels that everything here is installed from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from overlay import Installation
from support import ROOT


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder with every package's wheel and that of the example plugin; RL_WHEELS names one with those of a build."""
    folder = tmp_path_factory.mktemp("wheels")
    given = os.environ.get("RL_WHEELS")
    for wheel in Path(given).glob("*.whl") if given else ():
        shutil.copy(wheel, folder)
    built = {path.name.partition("-")[0].replace("_", "-") for path in folder.glob("*.whl")}
    for project in [*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("examples/plugins/*/pyproject.toml")]:
        package = project.parent
        if package.name not in built and f"rl-{package.name}" not in built:
            command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
            subprocess.run(command, cwd=package, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture
def installation(tmp_path, wheels):
    """A fresh environment with nothing in it."""
    return Installation(tmp_path, wheels)
