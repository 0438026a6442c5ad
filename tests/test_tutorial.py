"""docs/tutorial.md ends where it says: with a package that passes its tests and a model that has learned."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import blocks
from doc_commands import install
from rl_core.cli.main import main
from support import RL, ROOT, metrics_of

FILES = {block.title: block.text for block in blocks(ROOT / "docs" / "tutorial.md") if block.title}
ALGORITHM = [f"src/rl_algorithm_winners/{name}.py" for name in ("algorithm", "loss")]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder after the tutorial's last file was written."""
    folder = tmp_path_factory.mktemp("tutorial") / "rl-algorithm-winners"
    assert main(["plugin", "new", "algorithm", "winners", "--directory", str(folder)]) == 0
    assert all((folder / name).is_file() for name in ALGORITHM), "the tutorial replaces files of the package"
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_the_algorithm_has_at_most_forty_lines():
    lines = [line for name in ALGORITHM for line in FILES[name].splitlines() if line.strip()]
    assert len(lines) <= 40


def test_the_generated_tests_still_hold(package, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(package / "src"), *sys.path])
    names = runpy.run_path(str(package / "tests" / "test_algorithm.py"))
    tests = {name: test for name, test in names.items() if name.startswith("test_")}
    assert len(tests) == 5
    for test in tests.values():
        test()


@pytest.mark.slow
def test_the_run_learns_as_the_tutorial_says(package, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    paths = [install(package), str(package / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [RL, "run", "winners.yaml"]
    done = subprocess.run(command, cwd=package, env=kept | settings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rewards = [row["rollout/reward_mean"] for row in metrics_of(Path(package, "runs", "winners"))]
    assert rewards[0] < 0.3
    assert rewards[-1] > 0.9
    assert max(rewards) <= 1.0, "four characters of four, and no filler of the vocabulary among them"
