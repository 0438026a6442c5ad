"""``${secret:NAME}``: where it is looked for, and what is refused."""

from __future__ import annotations

import os
import time

import pytest
from rl_core.config.secret_sources import default_folder
from rl_core.preflight.check import check

LOGGER = "loggers: [{name: remote, api_key: 'Bearer ${secret:HUB}'}]\n"


@pytest.fixture
def home(folder, monkeypatch):
    """The folder in which secrets are looked for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
    os.makedirs(default_folder(), mode=0o700)
    return folder / "home" / "rl" / "secrets"


def private(path, text):
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def with_source(base, source):
    return base.replace("run: {", f"run: {{secrets: {{HUB: {source}}}, ") + LOGGER


def test_a_secret_comes_from_the_users_folder_and_is_written_as_an_expression(home, config_of, base, registry, folder):
    private(home / "HUB", "from home\n")
    config = config_of(base + LOGGER)
    assert config.stages[0].loggers[0].config.api_key == "Bearer from home"
    assert "from home" not in config.to_yaml() + str(config.stages[0].resolved) + str(config.document)
    assert config.typed_secrets == {}
    (folder / "config.yaml").write_text(config.to_yaml())
    private(home / "HUB", "another value")  # as after a rotation
    assert check("config.yaml", [], registry).config.stages[0].loggers[0].config.api_key == "Bearer another value"


@pytest.mark.parametrize(
    "source",
    [
        "{file: hub.txt}",
        "{command: 'cat hub.txt'}",
        "{command: [sh, -c, 'echo value of hub']}",
    ],
)
def test_a_secret_comes_from_where_the_config_says(source, home, config_of, base, folder):
    private(folder / "hub.txt", "value of hub\n")
    config = config_of(with_source(base, source))
    assert config.stages[0].loggers[0].config.api_key == "Bearer value of hub"
    assert "value of hub" not in str(config.stages[0].resolved["loggers"])


def test_the_keyring_is_asked_in_a_process_of_its_own(home, folder, monkeypatch, config_of, problems_of, base):
    if __import__("importlib.util").util.find_spec("keyring") is None:
        (problem,) = problems_of(with_source(base, "{keyring: training}"))
        assert problem.endswith("'keyring' is not installed\n    pip install 'rl-core[keyring]'")
    package = folder / "path" / "keyring"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys\nprint('-'.join(sys.argv[1:]))\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(folder / "path"))
    config = config_of(with_source(base, "{keyring: training, user: me}"))
    assert config.stages[0].loggers[0].config.api_key == "Bearer get-training-me"
    config = config_of(with_source(base, "{keyring: training}"))
    assert config.stages[0].loggers[0].config.api_key == "Bearer get-training-HUB"


def test_a_command_runs_once_for_all_stages(home, config_of, base, folder):
    script = private(folder / "count.sh", "echo . >> ran; echo counted secret\n")
    text = with_source(base, f"{{command: [sh, {script}]}}") + "stages: [{name: a}, {name: b}]\n"
    assert [s.loggers[0].config.api_key for s in config_of(text).stages] == ["Bearer counted secret"] * 2
    assert (folder / "ran").read_text() == ".\n"


@pytest.mark.parametrize(
    ("source", "message", "fix"),
    [
        ("{file: absent.txt}", "cannot read the secret in {folder}/absent.txt: No such file or directory", ""),
        (
            "{file: open.txt}",
            "the secret in {folder}/open.txt may be read by others (mode 0644)",
            "chmod 600 {folder}/open.txt",
        ),
        ("{file: empty.txt}", "{folder}/empty.txt holds no text", ""),
        ("{file: pipe}", "cannot read the secret in {folder}/pipe: it is no regular file", ""),
        ("{file: large.txt}", "the secret in {folder}/large.txt has more than 64 KiB", ""),
        ("{file: binary.txt}", "the secret in {folder}/binary.txt is not UTF-8 text", ""),
        (
            "{command: no-such-program}",
            "the command 'no-such-program' for a secret cannot be started: No such file",
            "",
        ),
        (
            "{command: [sh, -c, 'echo out; printf \"wrong to%s=hunter22\" ken >&2; exit 3']}",
            "the command 'sh' for a secret failed (exit code 3): wrong token=***",
            "",
        ),
        ("{command: 'true'}", "the command 'true' holds no text", ""),
        ("{command: 'yes'}", "the command 'yes' for a secret wrote more than 64 KiB", ""),
        (
            "{command: [sleep, '60'], timeout: 0.3}",
            "the command 'sleep' for a secret did not end within 0.3 s",
            "raise its",
        ),
    ],
)
def test_what_cannot_be_had_is_explained(source, message, fix, home, problems_of, base, folder):
    for name, text in {"empty.txt": "\n", "large.txt": "x" * 70_000}.items():
        private(folder / name, text)
    private(folder / "binary.txt", "").write_bytes(b"\xff\xfe")
    (folder / "open.txt").write_text("hunter22")
    (folder / "open.txt").chmod(0o644)
    os.mkfifo(folder / "pipe", 0o600)
    (problem,) = problems_of(with_source(base, source))
    first, _, last = problem.partition("\n    ")
    assert first.startswith("c.yaml:6: loggers.0.api_key: " + message.format(folder=folder))
    assert last.startswith(fix.format(folder=folder))


def test_a_command_that_leaves_a_process_behind_ends_nevertheless(home, config_of, base):
    started = time.monotonic()
    config = config_of(with_source(base, "{command: [sh, -c, 'sleep 60 & echo left alone']}"))
    assert config.stages[0].loggers[0].config.api_key == "Bearer left alone"
    assert time.monotonic() - started < 20


def test_a_secret_that_is_nowhere_says_where_to_put_it(home, problems_of, base):
    (problem,) = problems_of(base + LOGGER)
    assert problem.startswith(
        f"c.yaml:6: loggers.0.api_key: there is no secret 'HUB': neither 'run.secrets' nor {home}"
    )
    assert f"(umask 077; cat > {home}/HUB)" in problem


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}", "give exactly one of 'file', 'command' and 'keyring'"),
        ("{file: a, command: b}", "give exactly one of 'file', 'command' and 'keyring'"),
        ("{command: ''}", "the command is empty"),
        ("{file: a, user: b}", "'user' belongs to 'keyring'"),
        ("{fiel: a}", "unknown key 'fiel'"),
    ],
)
def test_a_source_names_one_place(source, message, home, problems_of, base):
    (problem,) = problems_of(with_source(base, source))
    assert f"run.secrets.HUB{'.fiel' if 'fiel' in source else ''}: {message}" in problem


def test_names_and_circles(home, problems_of, base):
    (problem,) = problems_of(base + "loggers: [{name: remote, api_key: '${secret:a b}'}]\n")
    assert problem == "c.yaml:6: loggers.0.api_key: 'a b' is not the name of a secret\n    write ${secret:NAME}"
    (problem,) = problems_of(with_source(base, "{file: '/a/${secret:HUB}'}").replace(LOGGER, ""))
    assert "interpolation goes in a circle" in problem


def test_a_secret_in_any_field_is_not_shown_in_a_problem(home, problems_of, base):
    private(home / "HUB", "hunter22")
    (problem,) = problems_of(base.replace("steps: 10", "steps: '${secret:HUB}'"))
    assert problem == "c.yaml:5: run.steps: must be a whole number"
