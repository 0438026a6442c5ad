"""The frozen config, and writing it out so that it comes back the same."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import yaml
from rl_core.io.permissions import write_secret_file
from rl_core.preflight.check import check

STAGES = """
loggers:
  - {name: remote, project: 'a$${b}', api_key: "${env:ACME_KEY}"}
stages:
  - name: sft
    run: {steps: 20}
    data: {path: ./more.txt, parse: "fn.py:rows", model: ./folder}
  - name: rl
    model: {path: "${stages.sft.export}"}
    algorithm: {name: clip, kl: {in: reward}, learning_rate: 1e-7}
    generator: {name: sampler, stop: ["1e-3", "yes"]}
    rewards: [{name: digits, weight: 2}]
"""


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("ACME_KEY", "hunter2")


@pytest.mark.parametrize("more", ["", STAGES])
def test_the_written_config_loads_to_an_equal_one_from_anywhere(
    key, config_of, base, more, registry, tmp_path_factory, monkeypatch
):
    config = config_of(base + more)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "config.yaml").write_text(config.to_yaml())
    monkeypatch.chdir(elsewhere)
    again = check("config.yaml", [], registry)
    assert again.problems == ()
    assert again.config == config
    assert again.config.to_yaml() == config.to_yaml()


def test_the_document_holds_what_was_given_with_absolute_paths(config_of, base, folder):
    assert config_of(base).document == {
        "model": {"path": "org/base"},
        "run": {"name": "demo", "directory": str(folder / "runs" / "demo"), "steps": 10},
        "algorithm": {"name": "imitate"},
        "backend": {"name": "tiny"},
        "tokenizer": {"name": "hf"},
        "data": {"name": "lines", "path": str(folder / "train.txt")},
    }


def test_the_document_of_a_chain_gives_every_stage_in_full(key, config_of, base, folder):
    document = config_of(base + STAGES).document
    assert set(document) == {"run", "stages"}
    assert document["run"] == {"name": "demo", "directory": str(folder / "runs" / "demo")}
    sft, rl = document["stages"]
    assert "generator" not in sft
    assert sft["data"]["parse"] == f"{folder}/fn.py:rows"
    assert sft["data"]["model"] == str(folder / "folder")
    assert (sft["run"], rl["run"]) == ({"steps": 20}, {"steps": 10})
    assert rl["model"] == {"path": "${stages.sft.export}"}


def test_a_run_that_was_moved_finds_its_exports(key, config_of, base, registry, folder):
    (folder / "config.yaml").write_text(config_of(base + STAGES).to_yaml())
    moved = check("config.yaml", ["run.directory=/moved"], registry).config
    assert moved.stages[1].model.path == "/moved/stages/sft/export"


def test_resolved_data_has_defaults_and_real_folders(key, config_of, base, folder):
    resolved = config_of(base + STAGES).stages[1].resolved
    assert resolved["run"]["seed"] == 0
    assert resolved["model"]["path"] == str(folder / "runs" / "demo" / "stages" / "sft" / "export")
    assert resolved["algorithm"]["kl"] == {"coefficient": 0.0, "in": "reward"}
    assert resolved["loggers"] == [
        {"name": "remote", "project": "a${b}", "api_key": "${env:ACME_KEY}", "password": None}
    ]


def test_a_secret_from_the_environment_is_used_but_never_written(key, config_of, base):
    config = config_of(base + STAGES)
    assert config.stages[0].loggers[0].config.api_key == "hunter2"
    assert "hunter2" not in config.to_yaml()
    assert "hunter2" not in str(config.document)
    assert "hunter2" not in str([stage.resolved for stage in config.stages])


def test_a_secret_variable_is_not_written_under_any_key(config_of, base, monkeypatch):
    monkeypatch.setenv("ACME_TOKEN", "hunter2")
    text = (
        base + "loggers:\n"
        "  - {name: remote, project: 'x-${env:ACME_TOKEN}'}\n"
        "  - {name: remote, project: '${loggers.0.project}!'}\n"
    )
    config = config_of(text)
    assert config.stages[0].loggers[1].config.project == "x-hunter2!"
    assert [logger["project"] for logger in config.document["loggers"]] == [
        "x-${env:ACME_TOKEN}",
        "x-${env:ACME_TOKEN}!",
    ]
    assert "hunter2" not in str(config.stages[0].resolved)


TYPED = "a secret is typed into the config; the run directory keeps it in a file that only you may read"


def test_a_secret_typed_into_the_file_is_kept_apart_and_found_again(run_check, base, registry, folder):
    result = run_check(base + "loggers:\n  - name: remote\n    api_key: hunter2\n    password: hunter3\n")
    fix = "\n    write {0}: ${{secret:NAME}} or ${{env:NAME}}"
    assert [(str(p), p.severity) for p in result.problems] == [
        ("c.yaml:8: loggers.0.api_key: " + TYPED + fix.format("api_key"), "warning"),
        ("c.yaml:9: loggers.0.password: " + TYPED + fix.format("password"), "warning"),
    ]
    config = result.config
    assert config.stages[0].loggers[0].config.api_key == "hunter2"
    text = config.to_yaml()
    assert "hunter" not in text + str(config.document) + str(config.stages[0].resolved)
    assert config.typed_secrets == {"typed.loggers.0.api_key": "hunter2", "typed.loggers.0.password": "hunter3"}
    assert "api_key: ${secret:typed.loggers.0.api_key}" in text

    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(text)
    line = text.splitlines().index("  api_key: ${secret:typed.loggers.0.api_key}") + 1
    lost = str(check("run/config.yaml", [], registry).problems[0])
    assert lost.startswith(f"run/config.yaml:{line}: loggers.0.api_key: the secret 'loggers.0.api_key' was typed into")
    assert lost.endswith("\n    give it again: loggers.0.api_key=…, better as ${secret:NAME}")

    write_secret_file(folder / "run" / "secrets.json", {"format": 1, "secrets": config.typed_secrets})
    again = check("run/config.yaml", [], registry)
    assert again.problems == ()
    assert again.config.stages[0].loggers[0].config == config.stages[0].loggers[0].config
    assert (again.config.to_yaml(), again.config.typed_secrets) == (text, {})


def test_a_password_in_an_address_is_kept_apart_and_found_again(run_check, base, registry, folder):
    result = run_check(base, "run.address=ray://me:hunter2@host:10001")
    (problem,) = result.problems
    typed = "a secret is typed on the command line, which others on this machine and in Ray can read"
    assert str(problem) == f"command line: run.address: {typed}\n    write address: ${{secret:NAME}} or ${{env:NAME}}"
    assert problem.severity == "warning"
    written = "ray://me:${secret:typed.run.address}@host:10001"
    assert result.config.stages[0].resolved["run"]["address"] == result.config.document["run"]["address"] == written
    (folder / "config.yaml").write_text(result.config.to_yaml())
    write_secret_file(folder / "secrets.json", {"format": 1, "secrets": result.config.typed_secrets})
    assert check("config.yaml", [], registry).config.stages[0].run.address == "ray://me:hunter2@host:10001"


def test_a_secret_that_an_older_version_removed_is_noticed(problems_of, base):
    gone = "this secret was removed when the config was written down"
    (problem,) = problems_of(base, "run.address=ray://me:***@host:10001")
    assert problem.startswith(f"command line: run.address: {gone}\n")
    (problem,) = problems_of(base + "loggers: [{name: remote, api_key: '***'}]\n")
    assert problem.startswith(f"c.yaml:6: loggers.0.api_key: {gone}\n")


def test_what_comes_from_the_environment_stays_an_expression(config_of, base, monkeypatch, registry, folder):
    monkeypatch.setenv("STEPS", "12")
    monkeypatch.setenv("DATA", "some/rows")
    monkeypatch.setenv("PROJECT", "ours")
    text = base.replace("steps: 10", "steps: '${env:STEPS}'").replace("train.txt", "'${env:DATA}.txt'")
    text += "loggers: [{name: remote, project: 'a-${env:PROJECT}-${run.steps}'}]\n"
    config = config_of(text)
    assert (config.stages[0].run.steps, config.stages[0].loggers[0].config.project) == (12, "a-ours-12")
    stage = config.stages[0].resolved
    assert (stage["run"]["steps"], stage["loggers"][0]["project"]) == (
        "${env:STEPS}",
        "a-${env:PROJECT}-${env:STEPS}",
    )
    assert stage["data"]["path"] == f"{folder}/${{env:DATA}}.txt"
    assert "ours" not in config.to_yaml()
    assert config.from_environment["data.path"] == str(folder / "some" / "rows.txt")

    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(config.to_yaml())
    again = check("run/config.yaml", [], registry).config
    assert again.stages[0].data.config.path == str(folder / "some" / "rows.txt")  # as from the file's own folder
    assert (again.to_yaml(), again.from_environment) == (config.to_yaml(), config.from_environment)


def test_a_secret_names_no_folder(problems_of, base, monkeypatch):
    monkeypatch.setenv("ACME_TOKEN", "hunter2")
    assert problems_of(base, "run.name=x-${env:ACME_TOKEN}", "run.directory=a/${run.name}") == [
        "command line: run.name: holds a secret, and names a folder\n    choose another run.name",
        "command line: run.directory: holds a secret, and names a folder\n    choose another run.directory",
    ]


def test_a_typed_secret_names_no_folder(problems_of, base):
    refused = "holds a secret, and names a folder"
    for override in ("run.name=hf_AbCdEfGhIjKlMnOpQrSt", "run.directory=/tmp/https:/me:hunter22@host"):
        found = [problem.partition("\n")[0] for problem in problems_of(base, override)]
        assert f"command line: {override.partition('=')[0]}: {refused}" in found


def test_a_default_that_is_a_secret_is_treated_as_typed(run_check, base, monkeypatch):
    monkeypatch.delenv("ACME_KEY", raising=False)
    text = base + "loggers: [{name: remote, api_key: '${env:ACME_KEY:hunter2}'}]\n"
    config = run_check(text).config
    assert config.typed_secrets == {"typed.loggers.0.api_key": "hunter2"}
    monkeypatch.setenv("ACME_KEY", "other-key")
    config = run_check(text).config
    assert (config.document["loggers"][0]["api_key"], config.typed_secrets) == ("${env:ACME_KEY}", {})


def test_run_directories(config_of, base, folder):
    assert config_of(base).directory == str(folder / "runs" / "demo")
    assert config_of(base, "run.directory=out").directory == str(folder / "out")
    config = config_of(base, "run.directory=out/${run.name}-${run.seed}")
    assert config.directory == config.stages[0].run.directory == str(folder / "out" / "demo-0")
    assert config_of(base, "run.name=other").name == "other"


def test_a_wrong_run_directory_is_reported_once(problems_of, base):
    stages = "stages: [{name: a}, {name: b}]\n"
    assert problems_of(base + stages, "run.directory=5") == [
        'command line: run.directory: must be text, found 5\n    put it in quotes: "5"'
    ]
    assert problems_of(base + stages, "run.directory=${run.nam}") == [
        "command line: run.directory: '${run.nam}' refers to 'run.nam', which the config does not have\n"
        "    did you mean 'run.name'?"
    ]


def test_a_config_is_frozen_and_travels(config_of, base):
    config = config_of(base)
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "x"


def test_written_yaml_is_read_alike_by_other_tools(key, config_of, base):
    stop = yaml.safe_load(config_of(base + STAGES).to_yaml())["stages"][1]["generator"]["stop"]
    assert stop == ["1e-3", "yes"]
