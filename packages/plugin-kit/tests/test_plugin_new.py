"""``rl plugin new``."""

from __future__ import annotations

import pytest
from rl_core.cli.main import main

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "math", "a:B", "a:C", "Math")]
"""


@pytest.fixture(autouse=True)
def folder(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_package_is_written_and_the_next_commands_are_shown(folder, capsys):
    assert main(["plugin", "new", "logger", "csv"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "wrote rl-logger-csv to rl-logger-csv (10 files)\n"
        "    .github/workflows/test.yml\n"
        "    .gitignore\n"
        "    README.md\n"
        "    pyproject.toml\n"
        "    src/rl_logger_csv/__init__.py\n"
        "    src/rl_logger_csv/config.py\n"
        "    src/rl_logger_csv/logger.py\n"
        "    src/rl_logger_csv/plugin.py\n"
        "    tests/test_conformance.py\n"
        "    tests/test_logger.py\n"
        "next:\n"
        "    cd rl-logger-csv\n"
        "    pip install -e '.[test]'\n"
        "    pytest\n"
        "    rl plugin check rl-logger-csv\n"
        "no licence is chosen: add a file LICENSE, and name the licence in pyproject.toml, before you publish\n"
    )
    assert printed.err == ""
    assert (folder / "rl-logger-csv" / "pyproject.toml").is_file()


def test_the_folder_can_be_chosen_and_quoted_where_a_shell_needs_it(folder, capsys):
    assert main(["plugin", "new", "logger", "csv", "--directory", "my plugins/csv"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("wrote rl-logger-csv to my plugins/csv (10 files)\n")
    assert "\n    cd 'my plugins/csv'\n" in printed
    assert (folder / "my plugins/csv/src/rl_logger_csv/logger.py").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["rewards", "length"],
            "error: there is no kind of plugin 'rewards'\n    did you mean 'reward'? choose one of algorithm, backend, "
            "generator, data, reward, environment, evaluator, logger\n",
        ),
        (
            ["reward", "My Reward"],
            "error: 'My Reward' is not a valid package name\n    write it with lower-case letters, digits and single "
            "hyphens, beginning with a letter, for example my-reward\n",
        ),
        (
            ["reward", "length"],
            "error: rl-reward-length exists already; nothing was written\n"
            "    choose another folder with --directory, or remove it\n",
        ),
        (
            ["reward", "math"],
            "error: rl-reward-math is installed already; nothing was written\n"
            "    choose another name, or: pip uninstall rl-reward-math\n",
        ),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_written(folder, install, capsys, arguments, message):
    install("rl-reward-math", PLUGIN)
    (folder / "rl-reward-length").mkdir()
    before = sorted(folder.rglob("*"))
    assert main(["plugin", "new", *arguments]) == 2
    assert capsys.readouterr().err == message
    assert sorted(folder.rglob("*")) == before


def test_a_missing_name_is_a_mistake_of_the_command_line(capsys):
    assert main(["plugin", "new", "reward"]) == 2
    assert "Missing argument 'NAME'" in capsys.readouterr().err


def test_the_help_lists_every_kind_and_what_its_code_does(capsys):
    from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS

    assert main(["plugin", "new", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for kind in PLUGIN_KINDS:
        assert f"{kind.name} {kind.summary}" in text
    assert "rl plugin new reward brevity" in text
