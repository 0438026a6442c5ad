from __future__ import annotations

import logging
import sys

import pytest
from pydantic import SecretStr
from rl_secrets.redaction import (
    RedactingFormatter,
    hide_secrets,
    is_secret,
    redact,
    remember_secrets,
    secret_values,
)


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hf_token",
        "api_key",
        "WANDB_API_KEY",
        "apiKey",
        "apikey",
        "client_secret",
        "Password",
        "db-password",
        "secret_key",
        "accessToken",
        "secrets",
        "api_keys",
        "Authorization",
        "proxy-authorization",
        "bearer",
        "bearerToken",
        "private_key",
        "passphrase",
        "tokens",
        "access_tokens",
        "AWS_SECRET_ACCESS_KEY",
        "x-api-key",
        "credentials",
        "db_pwd",
        "webhook_url",
        "cookie",
    ],
)
def test_names_of_secrets(key):
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer",
        "max_new_tokens",
        "max_tokens_per_microbatch",
        "special_tokens",
        "pad_token",
        "eos_token",
        "stop_token_ids",
        "key",
        "name",
        "secretary",
        "PWD",
        "token_file",
        "api_key_env",
        "private_key_path",
        "AWS_ACCESS_KEY_ID",
        "num_tokens",
        "stop_tokens",
        "tokens_per_second",
        "SSH_AUTH_SOCK",
        "",
        "0",
    ],
)
def test_names_of_other_things(key):
    assert not is_secret(key)


def test_text_under_secret_keys_is_replaced_at_any_depth():
    document = {
        "api_key": "x",
        "a": [{"token": "y", "name": "z"}],
        "secrets": {"one": "1", "many": ["2", "3"]},
        "max_tokens": 5,
        "password": None,
        "hf_token": "${env:HF_TOKEN}",
        "auth_token": "Bearer ${env:KEY}",
        "my_token": "$${env:KEY}",
    }
    assert redact(document) == {
        "api_key": "***",
        "a": [{"token": "***", "name": "z"}],
        "secrets": {"one": "***", "many": ["***", "***"]},
        "max_tokens": 5,
        "password": None,
        "hf_token": "${env:HF_TOKEN}",
        "auth_token": "Bearer ${env:KEY}",
        "my_token": "***",
    }
    assert document["api_key"] == "x"


def test_passwords_in_addresses_are_replaced_and_expressions_stay():
    document = {"a": "s3://me:hunter2@host/x", "b": "ray://host:10001", "c": "s3://${env:ME}:${env:KEY}@host"}
    assert redact(document) == {**document, "a": "s3://me:***@host/x"}


def test_secrets_of_a_config_are_found_at_any_depth():
    document = {"api_key": "abcdef", "a": [{"token": SecretStr("ghijkl")}], "secrets": {"one": "mnopqr"}, "name": "x"}
    assert sorted(secret_values(document)) == ["abcdef", "ghijkl", "mnopqr"]


def test_secrets_of_the_environment_do_not_reach_a_text(monkeypatch):
    monkeypatch.setenv("ACME_API_KEY", "abcdef123")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    text = "401 for key=abcdef123 at https://me:pw@host in 1 s, with other-secret"
    assert hide_secrets(text, ["other-secret"]) == "401 for key=*** at https://me:***@host in 1 s, with ***"


def test_logs_hide_secrets_in_messages_and_tracebacks(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    try:
        raise ValueError("refused hf_abcdef")
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("rl", logging.ERROR, __file__, 1, "cannot log in with %s", ("hunter22",), error)
    remember_secrets(["hunter22"])
    text = RedactingFormatter("%(levelname)s %(message)s").format(record)
    assert text.startswith("ERROR cannot log in with ***\nTraceback ")
    assert text.endswith("\nValueError: refused ***")
