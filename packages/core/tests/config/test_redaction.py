from __future__ import annotations

import pytest
from rl_core.config.redaction import is_secret, redact


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
