"""``rl check`` and ``rl schema`` with this package: what is printed, and the exit code."""

from __future__ import annotations

import json

import pytest
from practice_parts import CONFIGS, GOOD, PLUGIN
from rl_core.cli.main import main


@pytest.fixture
def config(install, tmp_path, monkeypatch):
    """A folder with a config of practice components, as the working directory."""
    install("rl-x-parts", PLUGIN, files={"config.py": CONFIGS}, version="1.5")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(GOOD)
    return tmp_path / "c.yaml"


def test_a_good_config_shows_its_plan(config, capsys):
    code = main(["check", "c.yaml", "run.steps=7"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, ""), printed.out
    rows = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert "algorithm practice (rl-x-parts 1.5)" in rows
    assert "optimizer steps 1 per step × 7 steps = 7" in rows
    assert rows[-1] == "config ok"


def test_the_schema_is_printed_as_json_and_knows_the_plugins(config, capsys):
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["type"] == "object"
    assert '"practice"' in text
