"""Exit codes, error output and the commands of plugins."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rl_core.cli.main import main
from rl_core.errors import ConfigError, EnvironmentProblem, Interrupted, RLError

COMMANDS = """
from rl_core.hookspecs import hookimpl

@hookimpl
def register_commands(app):
    @app.command("x-hello")
    def hello(who: str = "world") -> None:
        "Greet."
        print(f"hello {who}")
"""


@pytest.fixture
def api(site, monkeypatch) -> ModuleType:
    """A run API that records its calls, in place of the one that starts Ray."""
    module = ModuleType("rl_core.training.api")
    module.calls = []

    def record(name):
        def call(*args, **kwargs):
            module.calls.append((name, args, kwargs))
            return 0

        return call

    for name in ("run", "resume", "evaluate", "export"):
        setattr(module, name, record(name))
    import rl_core.training

    monkeypatch.setitem(sys.modules, "rl_core.training.api", module)
    monkeypatch.setattr(rl_core.training, "api", module, raising=False)
    monkeypatch.delenv("RL_DEBUG", raising=False)
    return module


def fail_with(api: ModuleType, error: BaseException) -> None:
    def run(*args, **kwargs):
        raise error

    api.run = run


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("run c.yaml", ("run", ("c.yaml", []), {"resume": False, "allowed": [], "profile": False})),
        (
            "run c.yaml a.b=1 --resume c=[-1] --name two",
            ("run", ("c.yaml", ["a.b=1", "c=[-1]", "run.name=two"]), {"resume": True, "allowed": [], "profile": False}),
        ),
        ("resume runs/a x=1 --profile", ("resume", ("runs/a", ["x=1"]), {"allowed": [], "profile": True})),
        (
            "resume runs/a --allow data --allow run.seed x=1",
            ("resume", ("runs/a", ["x=1"]), {"allowed": ["data", "run.seed"], "profile": False}),
        ),
        ("eval runs/a x=1", ("evaluate", ("runs/a", ["x=1"]), {})),
        ("export runs/a", ("export", ("runs/a",), {"step": None, "stage": None, "to": None})),
        (
            "export runs/a --step 20 --stage sft --to out",
            ("export", ("runs/a",), {"step": 20, "stage": "sft", "to": "out"}),
        ),
    ],
)
def test_a_command_line_becomes_one_call(api, line, call):
    assert main(line.split()) == 0
    assert api.calls == [call]


def test_the_result_of_a_run_is_the_exit_code(api):
    api.run = lambda *args, **kwargs: 1
    assert main(["run", "c.yaml"]) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RLError("a worker died\n    look at logs/"), 1),
        (ConfigError("steps is missing"), 2),
        (EnvironmentProblem("no GPU"), 3),
        (Interrupted("stopped at step 3"), 130),
    ],
)
def test_an_explained_failure_is_printed_without_a_traceback(api, capsys, error, code):
    fail_with(api, error)
    assert main(["run", "c.yaml"]) == code
    printed = capsys.readouterr()
    head = "" if code == 130 else "error: "  # to be interrupted is no error
    assert printed.err == f"{head}{error}\n"
    assert printed.out == ""


def test_ctrl_c_ends_with_130(api):
    fail_with(api, KeyboardInterrupt())
    assert main(["run", "c.yaml"]) == 130


def test_an_unforeseen_failure_is_one_line_with_a_log(api, capsys):
    fail_with(api, KeyError("loss"))
    assert main(["run", "c.yaml"]) == 1
    printed = capsys.readouterr().err
    error = r"error: unexpected KeyError: 'loss' \(test_main.py:\d+\)"
    found = re.fullmatch(error + r"\n    log: (\S+)\n    run again with --debug\n", printed)
    assert found, printed
    log = Path(found.group(1))
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_unforeseen_failure_shows_no_secret(api, capsys, monkeypatch, debug):
    monkeypatch.setenv("ACME_TOKEN", "hunter22")
    fail_with(api, KeyError("hunter22", "https://me:hunter33@host", {"api_key": "hunter44"}))
    assert main(["run", "c.yaml", *debug]) == 1
    printed = capsys.readouterr().err
    text = printed
    if not debug:
        log = Path(re.search(r"log: (\S+)", printed)[1])
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        text += log.read_text()
        log.unlink()
    assert "hunter" not in text
    assert "KeyError: ('***', 'https://me:***@host', {'api_key': '***'})" in text


@pytest.mark.parametrize("line", ["--debug run c.yaml", "run c.yaml --debug"])
def test_debug_shows_the_traceback_wherever_it_stands(api, capsys, line):
    fail_with(api, ConfigError("steps is missing"))
    assert main(line.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last)")
    assert printed.endswith("error: steps is missing\n")


def test_debug_through_the_environment(api, capsys, monkeypatch):
    monkeypatch.setenv("RL_DEBUG", "1")
    fail_with(api, KeyError("loss"))
    assert main(["run", "c.yaml"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_wrong_command_line_ends_with_2_and_a_suggestion(site, capsys):
    assert main(["rnu"]) == 2
    assert "No such command 'rnu'" in capsys.readouterr().err
    assert main(["run"]) == 2
    assert "Missing argument 'CONFIG'" in capsys.readouterr().err
    assert main(["run", "c.yaml", "--steps", "3"]) == 2


def test_a_command_of_a_package_that_is_not_loaded_says_what_to_type(site, capsys):
    assert main(["plugin", "new", "reward", "brevity"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: command 'plugin' cannot be used: rl-plugin-kit ")
    assert said.endswith(" is blocked: not among the plugins named in RL_PLUGINS\n    unset or edit RL_PLUGINS\n")


def test_the_version_is_shown(site, capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"rl-core \d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_plugin_adds_a_command(install, capsys):
    install("rl-x-commands", COMMANDS)
    assert main(["x-hello", "--who", "there"]) == 0
    assert capsys.readouterr().out == "hello there\n"


def test_a_plugin_whose_commands_fail_is_one_warning(install, capsys):
    install("rl-x-commands", COMMANDS)
    install(
        "rl-x-failing",
        "from rl_core.hookspecs import hookimpl\n@hookimpl\ndef register_commands(app):\n    raise OSError('no')\n",
    )
    assert main(["x-hello"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "hello world\n"
    assert printed.err == "warning: rl-x-failing: register_commands failed: OSError: no\n"


def test_a_command_that_typer_refuses_is_left_out(install, capsys):
    source = COMMANDS.replace("who: str", "who: complex | dict")
    install("rl-x-commands", source)
    assert main(["--version"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: the commands of rl-x-commands are left out: ")
    assert len(printed.err.splitlines()) == 1


def test_a_plugin_cannot_replace_a_command_of_the_core(api, install, capsys):
    install("rl-x-commands", COMMANDS.replace('"x-hello"', '"run"'))
    assert main(["run", "c.yaml"]) == 0
    assert [name for name, _, _ in api.calls] == ["run"]
    assert capsys.readouterr().err == "warning: command 'run' of rl_x_commands.plugin is left out: rl has its own\n"


def test_a_broken_plugin_is_one_warning_and_the_command_runs(api, install, capsys):
    install("rl-x-broken", "raise ValueError('no')")
    assert main(["run", "c.yaml"]) == 0
    assert capsys.readouterr().err == (
        "warning: plugin rl-x-broken 1.0 is broken: importing rl_x_broken.plugin failed: ValueError: no (plugin.py:1)\n"
    )


def test_a_plugin_cannot_put_a_group_in_the_place_of_a_command_of_the_core(install, capsys):
    source = (
        "import typer\nfrom rl_core.hookspecs import hookimpl\n"
        "@hookimpl\ndef register_commands(app):\n    app.add_typer(typer.Typer(), name='export')\n"
        "    @app.command('export')\n    def mine(): pass\n"
    )
    install("rl-x-commands", source)
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().err == (
        "warning: command 'export' of rl_x_commands.plugin is left out: rl has its own\n"
        "warning: command group 'export' of a plugin is left out: rl has a command of that name\n"
    )


def test_a_profile_without_the_package_that_makes_it_says_what_to_install(site, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["run", "c.yaml", "--profile"], ["resume", "runs/one", "--profile"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said == "error: --profile needs rl-reports, which is not installed\n    pip install rl-reports\n"
    assert not list(tmp_path.glob("runs"))
