"""The tests of shell blocks notice command lines that a reader could not use."""

from __future__ import annotations

import pytest
from doc_commands import WrongCommand, commands, run_command, run_shell


def test_a_block_is_taken_apart_into_its_commands():
    lines = ["pip install hatch && hatch run demo   # learns", "rl schema > rl.json", "python -m pip install \\"]
    text = "\n".join([*lines, "  'rl-core[testing]'"])
    assert commands(text) == [
        (["pip", "install", "hatch"], ""),
        (["hatch", "run", "demo"], ""),
        (["rl", "schema"], "rl.json"),
        (["python", "-m", "pip", "install", "rl-core[testing]"], ""),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("rl rnu config.yaml", "rl has no command rnu"),
        ("rl plugin nwe reward x", "rl has no command plugin nwe"),
        ("rl run --rseume config.yaml", "rl run --rseume config.yaml: No such option: --rseume"),
        ("rl run", "rl run: Missing parameter: config"),
        ("pip install rl-algo-gpro", "there is no package rl-algo-gpro"),
        ("pip install requets", "there is no package requets"),
        ("pip install ./nowhere", "there is no package ./nowhere"),
        ("pip install rl-core[tests]", "rl-core has no extra tests"),
        ("hatch run tset", "hatch.toml has no script tset"),
        ("hatch run docs:test", "hatch.toml has no script docs:test"),
        ("python benchmarks/gpu.py", "there is no file benchmarks/gpu.py"),
        ("mkae", "mkae is not a program the documentation may ask for"),
    ],
)
def test_what_does_not_exist_is_named(line, complaint):
    with pytest.raises(WrongCommand) as caught:
        run_shell(line)
    assert str(caught.value) == complaint


def test_a_command_that_fails_shows_what_it_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("rnu: {}\n")
    with pytest.raises(WrongCommand) as caught:
        run_shell("rl check bad.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "rl check bad.yaml: exit code 2"
    assert any(line.startswith("bad.yaml:1: rnu: unknown") for line in lines)


def test_output_goes_where_the_arrow_points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_shell("rl plugins --json > plugins.json")
    assert (tmp_path / "plugins.json").read_text() == run_command(["rl", "plugins", "--json"])
