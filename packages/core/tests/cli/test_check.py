"""``rl check``: what is printed, and the exit code."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import rl_core.preflight.check as config_check
from practice_parts import CONFIGS, GOOD, PLUGIN
from rl_core.cli.main import main
from rl_core.config.problems import Problem
from rl_isolation import function_checks as functions


@pytest.fixture
def config(install, tmp_path, monkeypatch):
    """A folder with a config of practice components, as the working directory."""
    install("rl-x-parts", PLUGIN, files={"config.py": CONFIGS}, version="1.5")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(GOOD)
    return tmp_path / "c.yaml"


def test_every_problem_is_printed_with_its_place_and_fix(config, capsys):
    config.write_text(GOOD.replace("steps", "step").replace("{name: practice}\ntok", "{name: practise}\ntok"))
    assert main(["check", "c.yaml"]) == 2
    printed = capsys.readouterr()
    assert "c.yaml:3: backend.name: unknown backend 'practise'\n    did you mean 'practice'? " in printed.out
    assert "c.yaml:6: run.step: " in printed.out
    assert printed.err.endswith(" problems in c.yaml\n")


BROKEN = {
    "raises.py": ("1 / 0\ndef f(): ...\n", "importing it failed at {}:1: ZeroDivisionError: division by zero"),
    "lacks.py": ("import no_such_module\ndef f(): ...\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "ends.py": ("import os\nos._exit(3)\ndef f(): ...\n", "importing it ended its process (exit code 3)"),
    "hangs.py": ("import time\ntime.sleep(600)\ndef f(): ...\n", "importing it takes longer than 2 s ({}:2)"),
    "lies.py": ("f = 3\n", "'f' is int, not a function"),
    "good.py": ("def f(): ...\n", None),
}


def test_functions_are_imported_in_a_process_that_is_killed_when_late(config, capsys, monkeypatch):
    monkeypatch.setattr(functions, "IMPORT_S", 2.0)
    monkeypatch.setenv("RL_PLUGINS", f"{os.environ['RL_PLUGINS']},rl-isolation")
    for name, (text, _) in BROKEN.items():
        config.with_name(name).write_text(text)
    config.write_text(GOOD.replace("data: {", f"data: {{functions: [{', '.join(f'{n}:f' for n in BROKEN)}], "))
    assert main(["check", "c.yaml"]) == 2
    printed = capsys.readouterr().out
    for index, (name, (_, found)) in enumerate(BROKEN.items()):
        problems = [line for line in printed.splitlines() if f"data.functions.{index}: " in line]
        assert len(problems) == (found is not None)
        if found is not None:
            assert problems[0].startswith("c.yaml:5: ")
            assert found.format(config.with_name(name)) in problems[0]


def test_a_config_that_is_not_there_is_a_problem_not_a_crash(config, capsys):
    assert main(["check", "absent.yaml"]) == 2
    printed = capsys.readouterr()
    assert "absent.yaml" in printed.out
    assert printed.err == "1 problem in absent.yaml\n"


def test_warnings_are_shown_and_the_config_is_ok(config, monkeypatch, capsys):
    real = config_check.check

    def with_a_warning(path, overrides, registry, **_options):
        problem = Problem("run.steps", "only 3 steps", "run.steps=100", severity="warning", where="c.yaml:6")
        return SimpleNamespace(config=real(path, overrides, registry).config, problems=(problem,), plans=())

    monkeypatch.setattr(config_check, "check", with_a_warning)
    assert main(["check", "c.yaml"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("warning: c.yaml:6: run.steps: only 3 steps\n    run.steps=100\n")
    assert printed.endswith("config ok\n")
