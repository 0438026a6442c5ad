"""Pydantic's errors in plain words, one by one."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run.steps=ten", "run.steps: must be a whole number, found 'ten'"),
        ("run.steps=1.5", "run.steps: must be a whole number, found 1.5"),
        ("run.steps=", "run.steps: must be a whole number, found nothing (null)"),
        ("run.steps=[1]", "run.steps: must be a whole number, found a list of 1"),
        ("run.steps={a: 1}", "run.steps: must be a whole number, found a mapping"),
        ("run.steps=-1", "run.steps: must be at least 0, found -1"),
        ("run.worker_timeout_s=0", "run.worker_timeout_s: must be more than 0, found 0"),
        (
            "run.wait_for_resources=soon",
            "run.wait_for_resources: must be a time such as 3h50m, 45m or 90s, or a number of seconds; found 'soon'",
        ),
        ("run.worker_timeout_s=.inf", "run.worker_timeout_s: must be a finite number, found inf"),
        ("run.name=a/b", "run.name: must match the pattern ^[A-Za-z0-9][A-Za-z0-9._-]*$, found 'a/b'"),
        ("run.name=2024", 'run.name: must be text, found 2024\n    put it in quotes: "2024"'),
        ("algorithm.learning_rate=fast", "algorithm.learning_rate: must be a number, found 'fast'"),
        ("algorithm.optimizer.min_lr_ratio=2", "algorithm.optimizer.min_lr_ratio: must be at most 1, found 2"),
        ("algorithm.optimizer.betas=[0.9, 1]", "algorithm.optimizer.betas.1: must be less than 1, found 1"),
        ("algorithm.optimizer.betas=[0.9]", "algorithm.optimizer.betas: must have at least 2 items"),
        ("algorithm.optimizer=adam", "algorithm.optimizer: must be a mapping of keys to values, found 'adam'"),
        (
            "algorithm.optimizer.schedule=cosin",
            "algorithm.optimizer.schedule: must be 'constant', 'linear' or 'cosine', found 'cosin'\n"
            "    did you mean 'cosine'?",
        ),
        (
            "algorithm.optimizer.betaz=1",
            "algorithm.optimizer.betaz: unknown key 'betaz' for algorithm 'imitate'\n    did you mean 'betas'?",
        ),
        (
            "model.init={hidden_size: 8, layers: 1, heads: 2}",
            "model.init.architecture: the section 'model' needs the key 'architecture'\n    architecture: …",
        ),
        ("model.trust_remote_code=maybe", "model.trust_remote_code: must be true or false, found 'maybe'"),
        ("data.keep=some", "data.keep: must be a whole number, or 'all', found 'some'"),
        ("data.parse=fn", "data.parse: must be 'module:function' or 'file.py:function', found 'fn'"),
        ("data.path=''", "data.path: the path is empty"),
        ("data.path=5", 'data.path: must be text, found 5\n    put it in quotes: "5"'),
        ("data.extra=5", "data.extra: must be a mapping of keys to values, found 5"),
        (
            "data.quality=high",
            "data.quality: unknown key 'quality' for data source 'lines'\n"
            "    known keys: name, path, model, parse, keep, on_bad_row, extra",
        ),
        ("data.keep='" + "y" * 90 + "'", "data.keep: must be a whole number, or 'all', found '" + "y" * 76 + "…"),
    ],
)
def test_a_wrong_value_is_explained(problems_of, base, override, problem):
    assert problems_of(base, override) == [f"command line: {problem}"]


def test_both_or_neither_source_of_a_model(problems_of, base):
    message = "model: give exactly one of 'path' (an existing model) and 'init' (from scratch)"
    assert problems_of(base.replace("path: org/base", "max_length: 5")) == [f"c.yaml:1: {message}"]
    init = "model.init={architecture: qwen2, hidden_size: 8, layers: 1, heads: 2}"
    assert problems_of(base, init) == [f"c.yaml:1: {message}"]


def test_a_models_own_check_is_reported_at_its_section(problems_of, base):
    text = base.replace(
        "model: {path: org/base}", "model:\n  init: {architecture: q, hidden_size: 9, layers: 1, heads: 2}"
    )
    assert problems_of(text + "tokenizer: {name: letters}\n") == [
        "c.yaml:2: model.init: hidden_size 9 is not divisible by heads 2"
    ]


def test_an_alias_is_the_key_that_is_known(problems_of, config_of, base):
    text = (
        base.replace("name: imitate", "name: clip, kl: {in: reward}")
        + "generator: {name: sampler}\nrewards: [{name: digits}]\n"
    )
    assert config_of(text).stages[0].algorithm.config.kl.place == "reward"
    assert problems_of(text, "algorithm.kl={inn: loss}") == [
        "command line: algorithm.kl.inn: unknown key 'inn' for algorithm 'clip'\n    did you mean 'in'?"
    ]


def test_a_secret_is_not_shown(problems_of, base):
    assert problems_of(base + "loggers:\n  - {name: remote, api_key: [hunter2]}\n") == [
        "c.yaml:7: loggers.0.api_key: must be text",
        "c.yaml:7: loggers.0.api_key.0: a secret is typed into the config; the run directory keeps it in a file that "
        "only you may read\n    write api_key: ${secret:NAME} or ${env:NAME}",
    ]
